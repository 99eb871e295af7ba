"""Draws: held-out latents, each with noise of its own, the same for whoever denoises them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import Ranks, evaluating


class Level(NamedTuple):
    """α and σ of a noise level, and what the network is told of it."""

    alpha: float
    sigma: float
    told: float

    @classmethod
    def of(cls, schedule: NoiseSchedule, timestep: int) -> Level:
        """Return the level of a timestep."""
        return cls(*(float(table[timestep]) for table in (schedule.alpha, schedule.sigma, schedule.model_time)))


class Answer(NamedTuple):
    """The network's x̂_0 and ε̂ at z_t = α z_0 + σ ε, all (n, C, H, W)."""

    z_t: Tensor
    x0: Tensor
    epsilon: Tensor


def answered(model: DiffusionModel, level: Level, z0: Tensor, noise: Tensor, condition: Condition) -> Answer:
    """Return what a model answers about latents ``z0`` (n, C, H, W) that are noised to a level."""
    z_t = level.alpha * z0 + level.sigma * noise
    return Answer(z_t, *model.x0_and_epsilon(z_t, level.told, level.alpha, level.sigma, condition))


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
    errors = torch.zeros(len(z0), len(timesteps), dtype=torch.float64, device=model.device)
    for k, timestep in enumerate(timesteps.tolist()):
        level = Level.of(model.schedule, timestep)
        for start in range(0, len(z0), batch_size):
            chunk = slice(start, start + batch_size)
            part = {name: value[chunk].to(model.device) for name, value in condition.items()}
            epsilon = answered(model, level, z0[chunk], noise[chunk], part).epsilon
            errors[chunk, k] = (noise[chunk] - epsilon).double().pow(2).flatten(1).mean(1)
    return errors


@dataclass(frozen=True)
class Draws:
    """N draws of held-out latents: number i is of image i modulo their number. Of several ranks each has its share,
    made up to the length of the longest (``Ranks.even_share``).

    Attributes:
        number: N.
        image: the image of each of this rank's draws, (n,).
        z0, noise: shape (n, C, H, W), on one device.
        condition: of each.
        ranks: how draws are shared out.
    """

    number: int
    image: Tensor
    z0: Tensor
    noise: Tensor
    condition: Condition
    ranks: Ranks

    @classmethod
    def of(
        cls,
        held_out: HeldOut,
        number: int,
        seed: int,
        device: torch.device,
        ranks: Ranks | None = None,
        stream: int = 1,
    ) -> Draws:
        """Return ``number`` draws of held-out latents, on ``device``.

        Args:
            seed, stream: of the noise.
        """
        ranks = ranks or Ranks()
        even = ranks.even_share(number)
        image = even % len(held_out.latents)
        z0 = held_out.latents[image].to(device)
        noise = sample_noise(even.tolist(), tuple(z0.shape[1:]), seed, stream).to(device)
        condition = {name: value[image].to(device) for name, value in held_out.condition.items()}
        return cls(number, image, z0, noise, condition, ranks)

    def gathered(self, rows: Tensor) -> Tensor:
        """Return the rows of all draws (N, …), float64 on the CPU, from those of this rank's (n, …)."""
        return self.ranks.gather_rows(rows, self.ranks.share(self.number), self.number)

    def squared_errors(self, model: DiffusionModel, timesteps: Tensor, batch_size: int) -> Tensor:
        """Return the squared ε-error per dimension of all draws at each level, (N, L), float64 on the CPU."""
        return self.gathered(squared_errors(model, self.z0, self.noise, self.condition, timesteps, batch_size))


def held_out_errors(
    model: DiffusionModel, held_out: HeldOut, num_draws: int, seed: int, timesteps: Tensor, batch_size: int
) -> np.ndarray:
    """Return the squared ε-errors of a model in evaluation on the denoising probe's draws, (levels, draws)."""
    with evaluating(model.modules):
        draws = Draws.of(held_out, num_draws, seed, model.device)
        return draws.squared_errors(model, timesteps, batch_size).T.numpy()
