"""Squared ε-errors of draws at noise levels, one by one: what paired comparisons are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmprobe.models.denoiser import Condition
from ldmprobe.models.diffusion_model import DiffusionModel


def squared_errors(
    model: DiffusionModel, z0: Tensor, noise: Tensor, condition: Condition, timesteps: Tensor, batch_size: int
) -> Tensor:
    """Return the squared ε-error per dimension of each draw and level, (N, L), float64, on the model's device.

    Args:
        z0, noise: of the draws, (N, C, H, W), on that device.
        condition: of the draws.
        timesteps: the levels, (L,).
        batch_size: latents through the network at once.
    """
    schedule = model.schedule
    errors = torch.zeros(len(z0), len(timesteps), dtype=torch.float64, device=model.device)
    for k, timestep in enumerate(timesteps.tolist()):
        alpha, sigma = float(schedule.alpha[timestep]), float(schedule.sigma[timestep])
        told = float(schedule.model_time[timestep])
        for start in range(0, len(z0), batch_size):
            chunk = slice(start, start + batch_size)
            part = {name: value[chunk].to(model.device) for name, value in condition.items()}
            z_t = alpha * z0[chunk] + sigma * noise[chunk]
            _, epsilon = model.x0_and_epsilon(z_t, told, alpha, sigma, part)
            errors[chunk, k] = (noise[chunk] - epsilon).double().pow(2).flatten(1).mean(1)
    return errors
