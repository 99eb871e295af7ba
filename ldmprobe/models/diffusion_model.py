"""DiffusionModel: the pieces a probe needs, taken from a LightningModule in training, a checkpoint, or a pretrained pipeline.

A user's own LightningModule is probed by returning one of these from a method called ``diffusion_model``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.prediction import to_x0_and_epsilon
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning, Unconditional
from ldmprobe.models.denoiser import Condition, as_denoiser


@dataclass
class DiffusionModel:
    """A denoiser with its noise schedule, latent shape, codec and conditioning.

    Attributes:
        network: the denoiser network, a diffusers model or any module that follows the Denoiser protocol.
        schedule: its noise schedule and prediction type.
        latent_shape: (C, H, W).
        codec: pixels ↔ latents; identity by default.
        conditioning: none by default.
        weights: which weights these are, such as "ema" or "raw"; goes into the record.
        trained_steps: optimiser steps behind these weights, where known.
    """

    network: nn.Module
    schedule: NoiseSchedule
    latent_shape: tuple[int, ...]
    codec: LatentCodec = field(default_factory=LatentCodec)
    conditioning: Conditioning = field(default_factory=Unconditional)
    weights: str = "raw"
    trained_steps: int = 0

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def modules(self) -> list[nn.Module]:
        """Everything whose train/eval mode a probe sets and restores."""
        return [self.network, self.codec, self.conditioning]

    def predict(self, z_t: Tensor, timestep: Tensor, condition: Condition, guidance_scale: float = 1.0) -> Tensor:
        """The denoiser's prediction at z_t (N, C, H, W), t (N,); with classifier-free guidance where the scale is not 1:
        null + scale · (conditional − null)."""
        denoise = as_denoiser(self.network)
        dtype = z_t.dtype
        z_t = z_t.to(next(self.network.parameters()).dtype)  # a half-precision network samples in float32 all the same
        conditional = denoise(z_t, timestep, condition)
        if guidance_scale == 1.0 or not condition:
            return conditional.to(dtype)
        null = denoise(z_t, timestep, self.conditioning.null(len(z_t), z_t.device))
        return (null + guidance_scale * (conditional - null)).to(dtype)

    def conditioned(
        self, condition: Condition, batch_size: int, guidance_scale: float = 1.0
    ) -> Callable[[Tensor, float], Tensor]:
        """(z_t, timestep as the network is told it) → prediction, for the samples of ``condition``, at most ``batch_size`` at once:
        what :func:`~ldmprobe.diffusion.trajectory.ddim_steps` takes."""

        def denoise(z_t: Tensor, timestep: float) -> Tensor:
            predictions = []
            for start in range(0, len(z_t), batch_size):
                chunk = slice(start, start + batch_size)
                part = {name: value[chunk] for name, value in condition.items()}
                predictions.append(self.predict(z_t[chunk], self._told(z_t[chunk], timestep), part, guidance_scale))
            return torch.cat(predictions) if predictions else torch.empty_like(z_t)

        return denoise

    def denoised(
        self, z_t: Tensor, timestep: float, alpha: float, sigma: float, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """(x̂_0, ε̂) at z_t = α x_0 + σ ε (N, C, H, W), all at one ``timestep`` as the network is told it, without guidance."""
        prediction = self.predict(z_t, self._told(z_t, timestep), condition)
        return to_x0_and_epsilon(self.schedule.prediction_type, prediction, z_t, alpha, sigma)

    def _told(self, z_t: Tensor, timestep: float) -> Tensor:
        return torch.full((len(z_t),), timestep, device=z_t.device, dtype=self.schedule.model_time.dtype)


def diffusion_model_of(module: Any) -> DiffusionModel:
    """What a LightningModule's ``diffusion_model()`` returns.

    Raises:
        ConfigurationError: it has no such method.
    """
    method = getattr(module, "diffusion_model", None)
    if method is None:
        raise ConfigurationError(
            f"{type(module).__name__} cannot be probed: give it a method `diffusion_model(self) -> ldmprobe.DiffusionModel` that "
            "returns its network, noise schedule and latent shape."
        )
    return method()
