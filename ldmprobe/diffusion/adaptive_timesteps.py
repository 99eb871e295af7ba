"""Timestep samplers that follow what they see. Their state is in the checkpoint and the same on every rank."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.timesteps import TimestepSampler, UniformLogSNR, UniformTimesteps
from ldmprobe.errors import ConfigurationError

TINY = 1e-30  # added to every loss, so that losses that are all 0 have a density


class AdaptiveTimesteps(TimestepSampler):
    """A sampler that is told the losses of every batch, of all ranks.

    Its state is no buffer: it stays on the CPU and in full precision, whatever the module is moved or cast to.
    """

    adaptive = True
    state_names: tuple[str, ...]

    @abstractmethod
    def observe(self, t: Tensor, log_snr: Tensor, loss: Tensor) -> None:
        """Take in losses, as every sampler does; those that are not finite are left out."""

    def get_extra_state(self) -> dict[str, Tensor]:
        return {name: vars(self)[name].clone() for name in self.state_names}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        for name in self.state_names:
            vars(self)[name].copy_(state[name])


def _finite(places: Tensor, losses: Tensor) -> Iterator[tuple[int, float]]:
    pairs = zip(places.tolist(), losses.tolist(), strict=True)
    return (pair for pair in pairs if math.isfinite(pair[1]))


class LossSecondMoment(AdaptiveTimesteps):
    """p(t) ∝ √E[L_t²] over the last ``history`` losses of each timestep, mixed with a little uniform; the loss is
    multiplied by 1/(T p), so that its expectation is uniform sampling's (Nichol & Dhariwal, 2021, arXiv:2102.09672,
    section 3.3). Uniform until every timestep has its history.

    Args:
        num_timesteps: T of the schedule.
    """

    state_names = ("losses", "count")

    def __init__(self, num_timesteps: int = 1000, history: int = 10, uniform: float = 0.001) -> None:
        super().__init__()
        if history < 1 or not 0 < uniform <= 1:
            raise ConfigurationError(
                f"LossSecondMoment got history {history}, uniform {uniform}; expected history >= 1 and 0 < uniform <= "
                "1."
            )
        self.uniform = uniform
        self.losses = torch.zeros(num_timesteps, history, dtype=torch.float64)
        self.count = torch.zeros(num_timesteps, dtype=torch.int64)

    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        total, history = self.losses.shape
        if schedule.num_timesteps != total:
            raise ConfigurationError(
                f"LossSecondMoment is for {total} timesteps, the schedule has {schedule.num_timesteps}; set "
                f"`num_timesteps: {schedule.num_timesteps}`."
            )
        if bool((self.count < history).any()):
            return torch.full((total,), 1 / total, dtype=torch.float64)
        root = self.losses.pow(2).mean(1).sqrt() + TINY
        return (1 - self.uniform) * root / root.sum() + self.uniform / total

    def loss_factor(self, schedule: NoiseSchedule) -> Tensor:
        return 1 / (schedule.num_timesteps * self.probabilities(schedule))

    def observe(self, t: Tensor, log_snr: Tensor, loss: Tensor) -> None:
        history = self.losses.shape[1]
        for timestep, value in _finite(t, loss):
            self.losses[timestep, int(self.count[timestep]) % history] = value
            self.count[timestep] += 1


class AdaptiveLoss(AdaptiveTimesteps):
    """VDM++'s: p(λ) ∝ a moving average of w(λ)‖Δε‖² over bins of log-SNR; the loss is multiplied by 1/p(λ), so that
    what is trained is the weight w on the measure dλ (Kingma & Gao, 2023, arXiv:2303.00848, appendix F).

    Args:
        num_bins: over log-SNR −12 … 12.
        decay: of the moving average, per observed loss of a bin.
        floor: least density of a bin, as a share of the largest.
    """

    state_names = ("average", "seen")

    def __init__(self, num_bins: int = 100, decay: float = 0.999, floor: float = 0.001) -> None:
        super().__init__()
        if num_bins < 1 or not 0 <= decay < 1 or not 0 < floor <= 1:
            raise ConfigurationError(
                f"AdaptiveLoss got num_bins {num_bins}, decay {decay}, floor {floor}; expected num_bins >= 1, 0 <= "
                "decay < 1, 0 < floor <= 1."
            )
        self.decay, self.floor = decay, floor
        self.average = torch.zeros(num_bins, dtype=torch.float64)
        self.seen = torch.zeros(num_bins, dtype=torch.int64)

    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        base = UniformLogSNR().probabilities(schedule)
        bins = _bins(schedule.log_snr, len(self.average))
        seen = (self.seen > 0)[bins]
        if not bool(seen[base > 0].any()):
            return base
        density = self.average[bins] + TINY
        # A bin that nothing has been drawn from yet counts as the largest, so that it will be.
        density = torch.where(seen, density, density.max()).clamp(min=self.floor * float(density.max()))
        return base * density / (base * density).sum()

    def loss_factor(self, schedule: NoiseSchedule) -> Tensor:
        base, p = UniformLogSNR().probabilities(schedule), self.probabilities(schedule)
        return torch.where(p > 0, base / p.clamp(min=1e-300), torch.zeros_like(p))

    def observe(self, t: Tensor, log_snr: Tensor, loss: Tensor) -> None:
        for place, value in _finite(_bins(log_snr, len(self.average)), loss):
            self.seen[place] += 1
            keep = _share_kept(self.decay, self.seen[place])
            self.average[place] = keep * self.average[place] + (1 - keep) * value


class VarianceAware(AdaptiveTimesteps):
    """Uniform timesteps whose loss is divided by the running standard deviation of the loss in its bin of log-SNR, so
    that levels whose loss scatters do not drown the others; after Sun & Shi (2026, arXiv:2603.10391), who weight by the
    observed variance of the loss per log-SNR.

    Of that paper only the abstract was at hand: the power, the bins and the bounds are ours.

    Args:
        power: of the standard deviation.
        num_bins: over log-SNR −12 … 12.
        decay: of the moving averages, per observed loss of a bin.
        max_ratio: no bin's factor is further than this from that of the mean deviation.
    """

    state_names = ("average", "square", "seen")

    def __init__(self, power: float = 1.0, num_bins: int = 32, decay: float = 0.999, max_ratio: float = 10.0) -> None:
        super().__init__()
        if not 0 < power <= 2 or num_bins < 1 or not 0 <= decay < 1 or not max_ratio > 1:
            raise ConfigurationError(
                f"VarianceAware got power {power}, num_bins {num_bins}, decay {decay}, max_ratio {max_ratio}; expected "
                "0 < power <= 2, num_bins >= 1, 0 <= decay < 1, max_ratio > 1."
            )
        self.power, self.decay, self.max_ratio = power, decay, max_ratio
        self.average, self.square = torch.zeros(2, num_bins, dtype=torch.float64)
        self.seen = torch.zeros(num_bins, dtype=torch.int64)

    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        return UniformTimesteps().probabilities(schedule)

    def loss_factor(self, schedule: NoiseSchedule) -> Tensor:
        known = self.seen > 1
        if not bool(known.any()):
            return torch.ones(schedule.num_timesteps, dtype=torch.float64)
        deviation = (self.square - self.average**2).clamp(min=0).sqrt() + TINY
        relative = torch.where(known, deviation / deviation[known].mean(), torch.ones_like(deviation))
        factor = relative.clamp(1 / self.max_ratio, self.max_ratio) ** -self.power
        return factor[_bins(schedule.log_snr, len(factor))]

    def observe(self, t: Tensor, log_snr: Tensor, loss: Tensor) -> None:
        for place, value in _finite(_bins(log_snr, len(self.average)), loss):
            self.seen[place] += 1
            keep = _share_kept(self.decay, self.seen[place])
            self.average[place] = keep * self.average[place] + (1 - keep) * value
            self.square[place] = keep * self.square[place] + (1 - keep) * value**2


def _bins(log_snr: Tensor, num_bins: int) -> Tensor:
    """Return which of ``num_bins`` bins over log-SNR −12 … 12 each level is in."""
    place = (log_snr.double().cpu().nan_to_num() + 12) / 24 * num_bins
    return place.clamp(0, num_bins - 1).long()


def _share_kept(decay: float, seen: Tensor) -> float:
    """Early on a moving average is a plain mean, so that the start is forgotten."""
    return min(decay, 1 - 1 / float(seen))
