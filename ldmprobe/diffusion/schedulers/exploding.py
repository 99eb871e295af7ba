"""Variance-exploding schedules: diffusers' schedulers of EDM and of the score SDE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldmprobe.diffusion.grids import through
from ldmprobe.diffusion.prediction import EpsilonPrediction, Prediction, SamplePrediction
from ldmprobe.diffusion.processes import VESDE
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.diffusion.schedulers.base import DiffusersSchedule
from ldmprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


class _ExplodingSchedule(DiffusersSchedule):
    """α = 1; the network, in the wrapper that it is used with, is told σ."""

    timestep_spacing = "linspace"

    def __init__(self, scheduler: SchedulerMixin, sigma: Tensor, prediction: Prediction) -> None:
        super().__init__(
            scheduler, torch.ones_like(sigma), sigma, prediction, sigma.float(), float(scheduler.init_noise_sigma)
        )

    def log_alpha_at(self, log_snr: Tensor) -> Tensor:
        """α = 1."""
        return torch.zeros_like(log_snr)

    def told_between(self, log_snr: Tensor) -> Tensor:
        """σ = e^{−λ/2}."""
        return (-log_snr / 2).exp()


class EDMSchedule(_ExplodingSchedule):
    """EDM's σ from σ_min to σ_max, spaced by ρ or geometrically (Karras et al., 2022, arXiv:2206.00364, table 1). Its
    scheduler preconditions the network, which ``Preconditioned`` does here: it answers x_0.
    """

    def __init__(self, scheduler: SchedulerMixin) -> None:
        if (answers := scheduler.config.prediction_type) != "epsilon":
            raise ConfigurationError(
                f"{type(scheduler).__name__} has prediction_type {answers!r}, where its network answers the negative "
                "of EDM's F; expected epsilon."
            )
        sigma_data = float(scheduler.config.sigma_data)
        self.network_wrapper = {"class_name": "Preconditioned", "sigma_data": sigma_data}
        fresh = type(scheduler).from_config(scheduler.config)
        fresh.set_timesteps(scheduler.config.num_train_timesteps)
        super().__init__(scheduler, fresh.sigmas[:-1].double().flip(0), SamplePrediction())

    def read_again(self, scheduler: SchedulerMixin) -> EDMSchedule:
        return EDMSchedule(scheduler)

    def sampling_scheduler(self, **settings: object) -> SchedulerMixin:
        """Return the scheduler as a ``diffusers.EDMEulerScheduler``."""
        from diffusers import EDMEulerScheduler

        return EDMEulerScheduler.from_config(self.scheduler.config, **settings)

    def native_grid(self, num_steps: int, timestep_spacing: str | None = None) -> SamplingGrid:
        """Return the levels of ``num_steps`` Euler steps as ``diffusers.EDMEulerScheduler`` takes them."""
        self.check_num_steps(num_steps)
        self.check_only_spacing(timestep_spacing)
        euler = self.sampling_scheduler()
        euler.set_timesteps(num_steps)
        sigma = euler.sigmas.double().cpu()
        one = torch.ones(num_steps, dtype=torch.float64)
        return SamplingGrid(sigma[:-1], one, sigma[:-1], one, sigma[1:], self)


class ScoreSDESchedule(_ExplodingSchedule):
    """The geometric σ of a ``ScoreSdeVeScheduler`` (Song et al., 2021, arXiv:2011.13456). Its network answers the
    score, of which ``ScoreNetwork`` makes ε.
    """

    def __init__(self, scheduler: SchedulerMixin) -> None:
        config, self.network_wrapper = scheduler.config, {"class_name": "ScoreNetwork"}
        self.process = VESDE(config.sigma_min, config.sigma_max, config.num_train_timesteps)
        super().__init__(scheduler, self.process.sigma, EpsilonPrediction())

    def read_again(self, scheduler: SchedulerMixin) -> ScoreSDESchedule:
        return ScoreSDESchedule(scheduler)

    def native_grid(self, num_steps: int, timestep_spacing: str | None = None) -> SamplingGrid:
        """Return ``num_steps`` geometric steps from σ_max to σ_min, and from there to x̂_0."""
        self.check_num_steps(num_steps)
        self.check_only_spacing(timestep_spacing)
        return through(self, self.process.native_grid(num_steps).log_snr)
