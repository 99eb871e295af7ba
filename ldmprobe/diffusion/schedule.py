r"""The noising process z_t = α_t x_0 + σ_t ε, read from a live diffusers scheduler.

.. math:: z_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad \lambda_t = \log \alpha_t^2 / \sigma_t^2 \;(\text{log-SNR})

Schedules are kept in float64 and cast where they meet the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class SamplingGrid:
    """The noise levels that S deterministic sampling steps visit: step k goes from (α_t, σ_t)[k] to (α_s, σ_s)[k].

    Attributes:
        timesteps: shape (S,), int64, what the denoiser is told.
        alpha_t, sigma_t: shape (S,), float64, the level each step starts from.
        alpha_s, sigma_s: shape (S,), float64, the level it arrives at.
        clip_range: where the scheduler clips x̂_0, or None.
    """

    timesteps: Tensor
    alpha_t: Tensor
    sigma_t: Tensor
    alpha_s: Tensor
    sigma_s: Tensor
    clip_range: float | None = None

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @property
    def log_snr(self) -> Tensor:
        """log-SNR at the start of each step, shape (S,)."""
        return 2 * (self.alpha_t.log() - self.sigma_t.log())


class NoiseSchedule:
    """α_t and σ_t for every training timestep, the prediction type, and the sampling grids that diffusers would use.

    Args:
        scheduler: a diffusers scheduler with an ``alphas_cumprod`` table (DDPM, DDIM, PNDM, DPM-Solver, ...: everything
            variance preserving).

    Raises:
        ConfigurationError: the scheduler has no such table, clips by dynamic thresholding, or has an unknown prediction type.
    """

    def __init__(self, scheduler: Any) -> None:
        name = type(scheduler).__name__
        if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
            raise ConfigurationError(
                f"{name} has no table of ᾱ_t (`alphas_cumprod`). Use a variance-preserving diffusers scheduler, such as "
                "DDIMScheduler or DDPMScheduler."
            )
        config = scheduler.config
        self.prediction_type: str = config.get("prediction_type", "epsilon")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ConfigurationError(
                f"{name} has prediction_type {self.prediction_type!r}; expected one of {', '.join(PREDICTION_TYPES)}."
            )
        if config.get("thresholding", False):
            raise ConfigurationError(
                f"{name} uses dynamic thresholding, which has no closed form; set `thresholding: false`."
            )
        self.scheduler = scheduler
        alphas_cumprod = scheduler.alphas_cumprod.detach().to("cpu", torch.float64)
        self.alpha = alphas_cumprod.sqrt()
        self.sigma = (1 - alphas_cumprod).sqrt()

    @property
    def num_timesteps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alpha)

    @cached_property
    def log_snr(self) -> Tensor:
        """λ_t for t = 0 … T−1, shape (T,), float64; −inf where the terminal SNR is zero."""
        return 2 * (self.alpha.log() - self.sigma.log())

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t for timesteps ``t`` (N,), shaped (N, 1, …) to multiply ``like`` (N, …), in its dtype and device."""
        shape = (-1, *(1,) * (like.ndim - 1))
        index = t.cpu()
        return (
            self.alpha[index].to(like.device, like.dtype).view(shape),
            self.sigma[index].to(like.device, like.dtype).view(shape),
        )

    def add_noise(self, x0: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """z_t = α_t x_0 + σ_t ε for timesteps ``t`` (N,)."""
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * epsilon

    def timesteps_at(self, log_snr: Tensor) -> Tensor:
        """The timesteps whose log-SNR is nearest to each of ``log_snr`` (K,): shape (K,), int64."""
        return (self.log_snr[None, :] - log_snr.to(torch.float64)[:, None]).abs().argmin(dim=1)

    def ddim_grid(self, num_steps: int, timestep_spacing: str | None = None) -> SamplingGrid:
        """The levels of ``num_steps`` DDIM steps as ``diffusers.DDIMScheduler`` takes them (less a stray step at t = −1 that it
        adds to some trailing grids).

        Args:
            num_steps: S, from 1 to T.
            timestep_spacing: "leading", "trailing" or "linspace"; default: the scheduler's own.

        Raises:
            ConfigurationError: S is out of range or the spacing unknown.
        """
        from diffusers import DDIMScheduler

        if not 1 <= num_steps <= self.num_timesteps:
            raise ConfigurationError(
                f"num_steps is {num_steps}; expected 1 to {self.num_timesteps}, the scheduler's training timesteps."
            )
        # Given one by one: from_config would put DDIM's own defaults in the place of another class's.
        config = self.scheduler.config
        settings = {
            "timestep_spacing": timestep_spacing or config.get("timestep_spacing", "leading"),
            "clip_sample": config.get("clip_sample", False),
        }
        try:
            ddim = DDIMScheduler.from_config(config, **settings)
            ddim.set_timesteps(num_steps)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        t = ddim.timesteps.cpu()
        t = t[t >= 0]  # of some trailing grids diffusers' rounding makes one step too many, at t = −1
        if int(t.max()) >= self.num_timesteps:
            raise ConfigurationError(
                f"{num_steps} steps with steps_offset {ddim.config.steps_offset} leave the schedule of "
                f"{self.num_timesteps} timesteps; use fewer steps or timestep_spacing 'trailing'."
            )
        # diffusers steps by T // S also where its own list of timesteps does not; follow it, so that paths agree.
        s = t - self.num_timesteps // num_steps
        a_t = self.alpha[t] ** 2
        a_s = torch.where(s >= 0, self.alpha[s.clamp(min=0)] ** 2, float(ddim.final_alpha_cumprod))
        clip_range = float(ddim.config.clip_sample_range) if ddim.config.clip_sample else None
        return SamplingGrid(t, a_t.sqrt(), (1 - a_t).sqrt(), a_s.sqrt(), (1 - a_s).clamp(min=0).sqrt(), clip_range)
