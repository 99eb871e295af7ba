"""Which noise levels a sampler visits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ldmprobe.diffusion.named import Named
from ldmprobe.diffusion.schedule import NoiseSchedule, SamplingGrid
from ldmprobe.errors import ConfigurationError, check_numbers, check_positive
from ldmprobe.types import PlainValues

NOISIEST = -10.0
"""Log-SNR where grids over the log-SNR start, if the schedule goes on to noisier levels. There is nothing of the data
beyond, and a cosine schedule would spend most of its steps there: its last σ/α is above 10⁴.
"""
_SAME = 1e-9  # levels whose log-SNR is this close are the same one


class Grid(Named, ABC):
    """A rule that lays S sampling steps on a noise schedule. Name and settings are kept as a ``Sampler``'s."""

    @abstractmethod
    def levels(self, schedule: NoiseSchedule, num_steps: int) -> SamplingGrid:
        """Return the levels of ``num_steps`` steps.

        Raises:
            ConfigurationError: the schedule has no such levels.
        """

    def provenance(self, schedule: NoiseSchedule) -> PlainValues:
        """Return what a record says of the rule, as plain values."""
        return {"grid": self.in_words}


class ScheduleGrid(Grid):
    """The levels that are customary for the schedule: those of diffusers for one that was read from a scheduler.

    Args:
        timestep_spacing: "leading", "trailing" or "linspace"; default: the scheduler's own.
    """

    name = "schedule"

    def __init__(self, timestep_spacing: str | None = None) -> None:
        self.timestep_spacing = timestep_spacing

    def levels(self, schedule: NoiseSchedule, num_steps: int) -> SamplingGrid:
        return schedule.native_grid(num_steps, self.timestep_spacing)

    def provenance(self, schedule: NoiseSchedule) -> PlainValues:
        return {"timestep_spacing": self.timestep_spacing or schedule.timestep_spacing}


class LogSNRGrid(Grid):
    """Levels evenly spaced in log-SNR, from the noisiest to the cleanest of the schedule, and then the data
    (DPM-Solver, Lu et al., 2022, arXiv:2206.00927, section 3.3; diffusers' ``use_lu_lambdas``).

    The network is told fractions of timesteps.

    Args:
        min_log_snr: where a schedule that goes on to noisier levels is entered.

    Raises:
        ConfigurationError: the log-SNR is not finite.
    """

    name = "log-snr"

    def __init__(self, min_log_snr: float = NOISIEST) -> None:
        check_numbers("LogSNRGrid", -math.inf, min_log_snr=min_log_snr)
        self.min_log_snr = min_log_snr

    def levels(self, schedule: NoiseSchedule, num_steps: int) -> SamplingGrid:
        check_numbers("Sampling", 1, num_steps=num_steps)
        return through(
            schedule, torch.linspace(*log_snr_range(schedule, self.min_log_snr), num_steps, dtype=torch.float64)
        )


class KarrasGrid(Grid):
    r"""Levels evenly spaced in (σ/α)^{1/ρ}, from σ_max to σ_min, and then the data (Karras et al., 2022,
    arXiv:2206.00364, eq. 5; diffusers' ``use_karras_sigmas``, which rounds what the network is told and this does not).

    .. math:: \sigma_i = \Bigl(\sigma_{max}^{1/\rho} + \frac{i}{S-1}
              \bigl(\sigma_{min}^{1/\rho} - \sigma_{max}^{1/\rho}\bigr)\Bigr)^{\rho}

    Args:
        rho: ρ; the larger, the more of the steps are at low noise.
        sigma_min, sigma_max: σ/α of the cleanest and noisiest level; default: those of the schedule.
        min_log_snr: where, without ``sigma_max``, a schedule that goes on to noisier levels is entered.

    Raises:
        ConfigurationError: ρ is not above 0, or not 0 < σ_min < σ_max.
    """

    name = "karras"
    variants: ClassVar = {"karras": {}, "edm": {"sigma_min": 0.002, "sigma_max": 80.0}}

    def __init__(
        self,
        rho: float = 7.0,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        min_log_snr: float = NOISIEST,
    ) -> None:
        check_positive("KarrasGrid", rho=rho)
        check_numbers("KarrasGrid", -math.inf, min_log_snr=min_log_snr)
        low, high = (0.0 if sigma_min is None else sigma_min), (math.inf if sigma_max is None else sigma_max)
        if not 0 <= low < high or sigma_min == 0 or sigma_max == math.inf:
            raise ConfigurationError(
                f"KarrasGrid got sigma_min {sigma_min} and sigma_max {sigma_max}; expected 0 < sigma_min < sigma_max."
            )
        self.rho, self.sigma_min, self.sigma_max, self.min_log_snr = rho, sigma_min, sigma_max, min_log_snr

    def levels(self, schedule: NoiseSchedule, num_steps: int) -> SamplingGrid:
        check_numbers("Sampling", 1, num_steps=num_steps)
        noisiest, cleanest = log_snr_range(schedule, self.min_log_snr)
        noisiest = noisiest if self.sigma_max is None else -2 * math.log(self.sigma_max)
        cleanest = cleanest if self.sigma_min is None else -2 * math.log(self.sigma_min)
        start, end = (math.exp(-log_snr / 2 / self.rho) for log_snr in (noisiest, cleanest))
        log_snr = -2 * self.rho * torch.linspace(start, end, num_steps, dtype=torch.float64).log()
        log_snr[0] = noisiest  # which no rounding takes off the schedule
        log_snr[1:][-1:] = cleanest
        return through(schedule, log_snr)


class ShiftGrid(Grid):
    r"""Levels evenly spaced in τ = σ/(α + σ), the time of rectified flow, and shifted towards noise, for latents of
    many pixels (Esser et al., 2024, arXiv:2403.03206, eq. 23):

    .. math:: \tau \mapsto \frac{s\,\tau}{1 + (s - 1)\,\tau}, \qquad \lambda \mapsto \lambda - 2\ln s

    The steps are evenly spaced down to the data, or, where there are so many that some would pass it, down to the
    schedule's cleanest level.

    Args:
        shift: s, 1 for none, in addition to what the schedule itself is shifted by.

    Raises:
        ConfigurationError: the shift is not above 0.
    """

    name = "shift"

    def __init__(self, shift: float = 3.0) -> None:
        check_positive("ShiftGrid", shift=shift)
        self.shift = shift

    def levels(self, schedule: NoiseSchedule, num_steps: int) -> SamplingGrid:
        check_numbers("Sampling", 1, num_steps=num_steps)
        noise = schedule.sigma / (schedule.alpha + schedule.sigma)
        noisiest, cleanest = float(noise[-1]), float(noise[0] / noise[-1])
        last = max(1 / num_steps, cleanest / (self.shift - (self.shift - 1) * cleanest))
        even = torch.linspace(1, last, num_steps, dtype=torch.float64)
        tau = noisiest * self.shift * even / (1 + (self.shift - 1) * even)
        log_snr = (2 * torch.special.logit(1 - tau)).clamp(max=float(schedule.log_snr[0]))
        log_snr[0] = schedule.log_snr[-1]  # which no rounding takes off the schedule
        return through(schedule, log_snr)


def through(schedule: NoiseSchedule, log_snr: Tensor) -> SamplingGrid:
    """Return the steps through the levels of these log-SNRs (S,), falling noise, and from the last of them to the data.

    Raises:
        ConfigurationError: a level lies outside the schedule, or is no cleaner than the one before.
    """
    if not bool((log_snr.diff() > 0).all()):
        raise ConfigurationError(
            f"The grid goes from log-SNR {float(log_snr[0]):.4g} to {float(log_snr[-1]):.4g} in steps that do not all "
            "lead to less noise; choose limits between which the noise falls."
        )
    alpha, sigma, told = schedule.level_at(log_snr)
    alpha, sigma = torch.cat([alpha, torch.ones(1)]), torch.cat([sigma, torch.zeros(1)])
    return SamplingGrid(told, alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], schedule, schedule.clip_range)


def entered_at(grid: SamplingGrid, log_snr: float) -> SamplingGrid:
    """Return the steps of ``grid`` that start cleaner than this log-SNR, after one that leads to them from exactly
    there; all of them, if none starts noisier.

    Raises:
        ConfigurationError: the level is not on the schedule.
    """
    rest = grid.after(int((grid.log_snr < log_snr - _SAME).sum()))
    if rest.num_steps and (rest.num_steps == grid.num_steps or abs(float(rest.log_snr[0]) - log_snr) <= _SAME):
        return rest
    alpha, sigma, told = grid.schedule.level_at(torch.tensor([log_snr], dtype=torch.float64))
    end = (rest.alpha_t, rest.sigma_t) if rest.num_steps else (grid.alpha_s[-1:], grid.sigma_s[-1:])
    return replace(
        grid,
        timesteps=torch.cat([told, rest.timesteps]),
        alpha_t=torch.cat([alpha, rest.alpha_t]),
        sigma_t=torch.cat([sigma, rest.sigma_t]),
        alpha_s=torch.cat([end[0][:1], rest.alpha_s]),
        sigma_s=torch.cat([end[1][:1], rest.sigma_s]),
        cut=rest.cut - 1,
    )


def log_snr_range(schedule: NoiseSchedule, min_log_snr: float) -> tuple[float, float]:
    """Return the log-SNR of the noisiest and the cleanest level of a grid over the log-SNR."""
    noisiest, cleanest = schedule.log_snr[schedule.rising[[0, -1]]].tolist()
    return max(noisiest, min_log_snr), cleanest
