"""Which timesteps a training batch sees. A sampler also knows its own density, so that statistics stay unbiased."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError


class TimestepSampler(nn.Module, ABC):
    """p(t) over the T training timesteps. A module, so that an adaptive sampler can keep its state in the checkpoint."""

    @abstractmethod
    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        """p(t), shape (T,), float64, sums to 1."""

    def forward(self, num_samples: int, schedule: NoiseSchedule) -> Tensor:
        """``num_samples`` timesteps drawn from torch's global generator: shape (N,), int64, on the CPU."""
        return torch.multinomial(self.probabilities(schedule), num_samples, replacement=True)


class UniformTimesteps(TimestepSampler):
    """t ~ U{0, …, T−1} (Ho et al., 2020)."""

    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        return torch.full((schedule.num_timesteps,), 1 / schedule.num_timesteps, dtype=torch.float64)


class UniformLogSNR(TimestepSampler):
    """Uniform in log-SNR between the schedule's ends: p(t) ∝ |dλ/dt|."""

    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        log_snr = schedule.log_snr
        finite = log_snr.isfinite()
        density = torch.zeros_like(log_snr)
        density[finite] = torch.gradient(log_snr[finite])[0].abs()
        return density / density.sum()


class StarvedBand(TimestepSampler):
    """Uniform, but timesteps in [start, stop) are drawn ``share`` times as often: a planted imbalance to test probes with.

    Raises:
        ConfigurationError: the band is empty or ``share`` is not in (0, 1].
    """

    def __init__(self, start: int, stop: int, share: float = 0.01) -> None:
        super().__init__()
        if not 0 <= start < stop:
            raise ConfigurationError(f"StarvedBand from {start} to {stop} is empty; expected 0 <= start < stop.")
        if not 0 < share <= 1:
            raise ConfigurationError(f"StarvedBand share is {share}; expected a number in (0, 1].")
        self.start, self.stop, self.share = start, stop, share

    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        density = torch.ones(schedule.num_timesteps, dtype=torch.float64)
        if self.start >= len(density):
            raise ConfigurationError(
                f"StarvedBand starts at {self.start}, beyond the schedule's {len(density)} timesteps."
            )
        density[self.start : self.stop] = self.share
        return density / density.sum()
