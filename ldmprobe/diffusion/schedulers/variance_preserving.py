"""Variance-preserving schedules: diffusers' schedulers that have a table of ᾱ_t."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ldmprobe.diffusion.prediction import KINDS, EpsilonPrediction
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.diffusion.schedulers.base import DiffusersSchedule
from ldmprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

_PREDICTIONS = ("epsilon", "sample", "v_prediction")  # diffusers' names of what such networks predict
_ZERO = 2.0**-24  # that diffusers' schedulers in terms of σ/α put in the place of the zero of a zero terminal SNR


class VariancePreservingSchedule(DiffusersSchedule):
    """z_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε (Ho et al., 2020, arXiv:2006.11239, eq. 4); the network is told t.

    Schedulers that sample in terms of σ/α (Euler, Heun, LMS, …) show the network the same latents, z/√(1 + (σ/α)²).
    """

    def __init__(self, scheduler: SchedulerMixin) -> None:
        name = type(scheduler).__name__
        if scheduler.config.get("timestep_type", "discrete") != "discrete":
            raise ConfigurationError(
                f"{name} has `timestep_type: {scheduler.config['timestep_type']}`: its network is told ¼ ln σ in the "
                "place of a timestep; set `timestep_type: discrete`."
            )
        prediction_type = scheduler.config.get("prediction_type", "epsilon")
        if prediction_type not in _PREDICTIONS:
            raise ConfigurationError(
                f"{name} has prediction_type {prediction_type!r}; expected one of {', '.join(_PREDICTIONS)}."
            )
        prediction = KINDS[prediction_type]
        alphas_cumprod = scheduler.alphas_cumprod.detach().to("cpu", torch.float64, copy=True)
        if scheduler.config.get("rescale_betas_zero_snr") and float(alphas_cumprod[-1]) == _ZERO:
            alphas_cumprod[-1] = 0.0
        if isinstance(prediction, EpsilonPrediction) and float(alphas_cumprod.min()) == 0:
            raise ConfigurationError(
                f"{name} has zero terminal SNR, where a prediction of ε says nothing of x_0; set `prediction_type: "
                "v_prediction`."
            )
        super().__init__(scheduler, alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), prediction)
        if scheduler.config.get("clip_sample", False):
            self.clip_range = float(scheduler.config.get("clip_sample_range", 1.0))
        config = scheduler.config
        self.timestep_spacing: str = config.get("timestep_spacing", "leading")
        self.ends_at_data = bool(config.get("set_alpha_to_one", config.get("final_sigmas_type") != "sigma_min"))

    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        """α² = sigmoid(λ)."""
        return logsigmoid(log_snr) / 2

    def read_again(self, scheduler: SchedulerMixin) -> VariancePreservingSchedule:
        return VariancePreservingSchedule(scheduler)

    def sampling_scheduler(self, **settings: object) -> SchedulerMixin:
        """Return the scheduler as a ``diffusers.DDIMScheduler``."""
        from diffusers import DDIMScheduler

        config = self.scheduler.config
        # Given one by one: from_config would put DDIM's own defaults in the place of another class's.
        own = {
            "timestep_spacing": config.get("timestep_spacing", "leading"),
            "clip_sample": config.get("clip_sample", False),
            "set_alpha_to_one": self.ends_at_data,
        }
        return DDIMScheduler.from_config(config, **{**own, **settings})

    def native_grid(self, num_steps: int, timestep_spacing: str | None = None) -> SamplingGrid:
        """Return the levels of ``num_steps`` DDIM steps as ``diffusers.DDIMScheduler`` takes them (less a stray step at
        t = −1 that it adds to some trailing grids).

        Args:
            num_steps: S, from 1 to T.
            timestep_spacing: "leading", "trailing" or "linspace"; default: the scheduler's own.

        Raises:
            ConfigurationError: S is out of range or the spacing unknown.
        """
        self.check_num_steps(num_steps)
        try:
            ddim = self.sampling_scheduler(**({"timestep_spacing": timestep_spacing} if timestep_spacing else {}))
            ddim.set_timesteps(num_steps)
        except (ValueError, NotImplementedError) as error:
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
        # Of its own table, which a DDIMScheduler of the same settings need not have (CogVideoX's is shifted).
        final = torch.ones(()).double() if ddim.config.set_alpha_to_one else self.alpha[0] ** 2
        a_s = torch.where(s >= 0, self.alpha[s.clamp(min=0)] ** 2, final)
        sigma_t, sigma_s = (1 - a_t).sqrt(), (1 - a_s).clamp(min=0).sqrt()
        return SamplingGrid(t, a_t.sqrt(), sigma_t, a_s.sqrt(), sigma_s, self, self.clip_range)
