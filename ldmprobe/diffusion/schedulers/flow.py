"""Rectified flow: diffusers' schedulers for flow matching."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ldmprobe.diffusion.prediction import KINDS, VelocityPrediction
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.diffusion.schedulers.base import DiffusersSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.types import PlainValues

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

_CURVES = tuple(f"use_{name}_sigmas" for name in ("karras", "exponential", "beta"))
_NO_FLOW = ("shift_terminal", "invert_sigmas", "stochastic_sampling", *_CURVES)


class FlowMatchSchedule(DiffusersSchedule):
    """Rectified flow, z = (1 − σ) x_0 + σ ε with answer u = ε − x_0 (Lipman et al., 2023, arXiv:2210.02747); the
    network is told T·σ.

    The scheduler is one of flow matching's own, or one of a solver with ``use_flow_sigmas``, whose network may answer ε
    or x_0, too.
    """

    flow = True
    timestep_spacing = "linspace"

    def __init__(self, scheduler: SchedulerMixin) -> None:
        name = type(scheduler).__name__
        for setting in _NO_FLOW:
            if scheduler.config.get(setting):
                raise ConfigurationError(f"{name} with `{setting}` cannot be probed; switch it off.")
        answers = scheduler.config.get("prediction_type", "flow_prediction")
        prediction = VelocityPrediction() if answers == "flow_prediction" else KINDS.get(answers)
        if prediction is None:
            raise ConfigurationError(
                f"{name} has prediction_type {answers!r}; expected one of flow_prediction, epsilon, sample."
            )
        self.shift = _shift_of(scheduler)
        steps = scheduler.config.num_train_timesteps
        uniform = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        sigma = self.shift * uniform / (1 + (self.shift - 1) * uniform)
        super().__init__(scheduler, 1 - sigma, sigma, prediction, (steps * sigma).float())

    def read_again(self, scheduler: SchedulerMixin) -> FlowMatchSchedule:
        return FlowMatchSchedule(scheduler)

    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        """α = 1 − σ = sigmoid(λ/2)."""
        return logsigmoid(log_snr / 2)

    def told_between(self, log_snr: Tensor) -> Tensor:
        """T·σ."""
        return self.num_timesteps * torch.sigmoid(-log_snr / 2)

    def sampling_scheduler(self, **settings: object) -> SchedulerMixin:
        """Return the scheduler as a ``diffusers.FlowMatchEulerDiscreteScheduler``."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        if type(self.scheduler) is not FlowMatchEulerDiscreteScheduler:
            own: PlainValues = {"num_train_timesteps": self.num_timesteps, "shift": self.shift}
            return FlowMatchEulerDiscreteScheduler(**{**own, **settings})
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config, **settings)
        if "shift" not in settings:
            scheduler.set_shift(self.shift)
        return scheduler

    def native_grid(self, num_steps: int, timestep_spacing: str | None = None) -> SamplingGrid:
        """Return the levels of the Euler steps that ``diffusers.FlowMatchEulerDiscreteScheduler`` takes."""
        self.check_num_steps(num_steps)
        self.check_only_spacing(timestep_spacing)
        euler = self.sampling_scheduler()
        euler.set_timesteps(num_steps)
        sigmas = euler.sigmas.double().cpu()
        return SamplingGrid(euler.timesteps.cpu(), 1 - sigmas[:-1], sigmas[:-1], 1 - sigmas[1:], sigmas[1:], self)


def _shift_of(scheduler: SchedulerMixin) -> float:
    """Return the shift towards noise: that which was set, else that of the settings, whichever name it has there."""
    config = scheduler.config
    of_settings = config.get("flow_shift" if "flow_shift" in config else "shift", 1.0)
    return float(vars(scheduler).get("_shift", of_settings))
