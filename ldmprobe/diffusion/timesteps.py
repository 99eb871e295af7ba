"""Which timesteps a training batch sees: the catalog. A sampler knows its own density, so that statistics stay
unbiased.

Those that change as they train are in ``diffusion/adaptive_timesteps.py``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit
from torch import Tensor, nn

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError, check_positive

FloatArray = NDArray[np.float64]
RARELY = 1 / 30
"""Of even draws: a timestep that is drawn less often is hardly trained. EDM's log-normal draws its ends a twentieth as
often as evenly."""


class TimestepSampler(nn.Module, ABC):
    """p(t) over the T training timesteps. A module, so that an adaptive sampler can keep its state in the checkpoint.

    Attributes:
        adaptive: whether it listens to ``observe``.
    """

    adaptive = False

    @abstractmethod
    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        """p(t), shape (T,), float64, sums to 1."""

    def coverage(self, schedule: NoiseSchedule) -> float:
        """Return the share of the density as it is meant that lies within the schedule's levels."""
        return 1.0

    def loss_factor(self, schedule: NoiseSchedule) -> Tensor:
        """A factor on the loss that belongs to the sampler, shape (T,), float64: 1 for one that means to change what is
        trained, 1/(T p) for one that only means to change its variance.
        """
        return torch.ones(schedule.num_timesteps, dtype=torch.float64)

    def observe(self, t: Tensor, log_snr: Tensor, loss: Tensor) -> None:
        """After a batch: its timesteps (N,), their log-SNR and their weighted losses, without the sampler's own factor,
        of all ranks. Only adaptive samplers listen.
        """

    def forward(self, num_samples: int, schedule: NoiseSchedule) -> Tensor:
        """``num_samples`` timesteps drawn from torch's global generator: shape (N,), int64, on the CPU."""
        return torch.multinomial(self.probabilities(schedule), num_samples, replacement=True)


# --- densities over the timestep -------------------------------------------------------------------------------------


class UniformTimesteps(TimestepSampler):
    """t ~ U{0, …, T−1} (Ho et al., 2020)."""

    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        return torch.full((schedule.num_timesteps,), 1 / schedule.num_timesteps, dtype=torch.float64)


class BetaTimesteps(TimestepSampler):
    """t/T ~ Beta(a, b): towards low noise where a < b (Zheng et al., 2024, *Beta-Tuned Timestep Diffusion Model*)."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        if not (a > 0 and b > 0):
            raise ConfigurationError(f"BetaTimesteps got a {a}, b {b}; expected numbers above 0.")
        self.a, self.b = a, b

    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        borders = np.linspace(0, 1, schedule.num_timesteps + 1)
        return torch.from_numpy(np.diff(stats.beta(self.a, self.b).cdf(borders)))


class SpeeD(TimestepSampler):
    """Timesteps above ``tau``, where the process barely changes, are drawn ``suppression`` times less often, and the
    loss is weighted by how fast it changes, d(1 − ᾱ)/dt brought to [1 − λ, λ] (Wang et al., 2024, arXiv:2405.17403,
    sections 3.3 and 3.4).

    Args:
        tau: of 1,000 timesteps; of a schedule of T, tau·T/1000.
        suppression: k in the paper.
        ceiling: λ in the paper, above .5.
    """

    def __init__(self, tau: float = 700, suppression: float = 5.0, ceiling: float = 0.6) -> None:
        super().__init__()
        if not (0 < tau <= 1000 and suppression >= 1 and 0.5 <= ceiling < 1):
            raise ConfigurationError(
                f"SpeeD got tau {tau}, suppression {suppression}, ceiling {ceiling}; expected 0 < tau <= 1000, "
                "suppression >= 1, 0.5 <= ceiling < 1."
            )
        self.tau, self.suppression, self.ceiling = tau, suppression, ceiling

    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        density = torch.full((schedule.num_timesteps,), self.suppression, dtype=torch.float64)
        density[round(self.tau * schedule.num_timesteps / 1000) :] = 1.0
        return density / density.sum()

    def loss_factor(self, schedule: NoiseSchedule) -> Tensor:
        change = torch.gradient(schedule.sigma**2)[0]
        place = (change - change.min()) / (change.max() - change.min()).clamp(min=1e-12)
        return (1 - self.ceiling) + (2 * self.ceiling - 1) * place


class StarvedBand(TimestepSampler):
    """Uniform, but timesteps in [start, stop) are drawn ``share`` times as often: a planted imbalance to test probes
    with.

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


# --- densities over the log-SNR --------------------------------------------------------------------------------------


class LogSNRDensity(TimestepSampler):
    """A density over λ: each timestep has the mass that is nearer to it than to its neighbors, so that noise levels are
    the same whatever the schedule, within its range. A timestep without signal or without noise is not drawn.
    """

    @abstractmethod
    def cumulative(self, log_snr: FloatArray) -> FloatArray:
        """P(λ' ≤ λ), shape (K,)."""

    def coverage(self, schedule: NoiseSchedule) -> float:
        low, high = self.cumulative(schedule.log_snr[schedule.rising[[0, -1]]].numpy())
        return float(high - low)

    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        log_snr = schedule.log_snr[schedule.rising].numpy()
        borders = np.concatenate([log_snr[:1], (log_snr[1:] + log_snr[:-1]) / 2, log_snr[-1:]])
        p = torch.zeros_like(schedule.log_snr)
        p[schedule.rising] = torch.from_numpy(np.abs(np.diff(self.cumulative(borders))))
        if not float(p.sum()) > 0:
            raise ConfigurationError(
                f"{type(self).__name__} draws nothing within the schedule's log-SNR {log_snr.min():.1f} … "
                f"{log_snr.max():.1f}; move its center or widen it."
            )
        return p / p.sum()


class UniformLogSNR(LogSNRDensity):
    """Uniform in log-SNR between the schedule's ends. With w_ε = 1 this is the variational bound (Kingma et al., 2021,
    arXiv:2107.00630).
    """

    def cumulative(self, log_snr: FloatArray) -> FloatArray:
        return log_snr  # up to the range, which is normalized away

    def coverage(self, schedule: NoiseSchedule) -> float:
        return 1.0


class LogNormalSigma(LogSNRDensity):
    """ln σ ~ N(mean, std²) with σ² = 1/SNR, that is λ ~ N(−2 mean, (2 std)²): EDM (−1.2, 1.2; Karras et al., 2022,
    arXiv:2206.00364, table 1) and EDM2 (−0.4, 1.0; arXiv:2312.02696).
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        super().__init__()
        check_positive("LogNormalSigma", std=std)
        self.mean, self.std = mean, std

    def cumulative(self, log_snr: FloatArray) -> FloatArray:
        return np.asarray(stats.norm.cdf(log_snr, -2 * self.mean, 2 * self.std))


class LogitNormal(LogSNRDensity):
    """Stable Diffusion 3's: flow time τ = sigmoid(N(mean, std²)), shifted τ' = shift·τ/(1 + (shift − 1)τ), that is
    λ ~ N(−2 mean − 2 ln shift, (2 std)²) (Esser et al., 2024, arXiv:2403.03206, section 3.1 and eq. 23).
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> None:
        super().__init__()
        check_positive("LogitNormal", std=std, shift=shift)
        self.std, self.center = std, -2 * mean - 2 * math.log(shift)

    def cumulative(self, log_snr: FloatArray) -> FloatArray:
        return np.asarray(stats.norm.cdf(log_snr, self.center, 2 * self.std))


class Laplace(LogSNRDensity):
    """p(λ) = exp(−|λ − center|/scale)/(2 scale) (Hang et al., 2024, arXiv:2407.03297, table 1)."""

    def __init__(self, center: float = 0.0, scale: float = 0.5) -> None:
        super().__init__()
        check_positive("Laplace", scale=scale)
        self.center, self.scale = center, scale

    def cumulative(self, log_snr: FloatArray) -> FloatArray:
        return np.asarray(stats.laplace.cdf(log_snr, self.center, self.scale))


class Mode(LogSNRDensity):
    """Stable Diffusion 3's mode sampling with heavy tails: τ = 1 − u − s (cos²(πu/2) − 1 + u), u uniform (Esser et al.,
    2024, eq. 20), where τ = σ/(α + σ) = sigmoid(−λ/2).

    Args:
        scale: s, in [−1, 2/(π − 2)], where the map is monotone.
    """

    def __init__(self, scale: float = 1.29) -> None:
        super().__init__()
        if not -1 <= scale <= 2 / (math.pi - 2):
            raise ConfigurationError(f"Mode got scale {scale}; expected a number from −1 to {2 / (math.pi - 2):.2f}.")
        self.scale = scale

    def cumulative(self, log_snr: FloatArray) -> FloatArray:
        u = np.linspace(0, 1, 10_001)
        tau = 1 - u - self.scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
        return np.asarray(np.interp(expit(-log_snr / 2), tau[::-1], u[::-1]))


class CosMap(LogSNRDensity):
    """Stable Diffusion 3's CosMap: τ = 1 − 1/(tan(πu/2) + 1), u uniform, that is π(τ) = 2/(π − 2πτ + 2πτ²) (Esser et
    al., 2024, eq. 21, 22).
    """

    def cumulative(self, log_snr: FloatArray) -> FloatArray:
        return 1 - 2 / np.pi * np.arctan(np.exp(-log_snr / 2))


# --- variance ---------------------------------------------------------------------------------------------------------


class Stratified(TimestepSampler):
    """Another sampler's density with one draw in each of N equal parts of its distribution: the same expectation, less
    variance over a batch (as in k-diffusion; Kingma et al., 2021, arXiv:2107.00630, appendix I.1, shift all N places by
    one draw).
    """

    def __init__(self, sampler: TimestepSampler) -> None:
        super().__init__()
        self.sampler, self.adaptive = sampler, sampler.adaptive

    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        return self.sampler.probabilities(schedule)

    def coverage(self, schedule: NoiseSchedule) -> float:
        return self.sampler.coverage(schedule)

    def loss_factor(self, schedule: NoiseSchedule) -> Tensor:
        return self.sampler.loss_factor(schedule)

    def observe(self, t: Tensor, log_snr: Tensor, loss: Tensor) -> None:
        self.sampler.observe(t, log_snr, loss)

    def forward(self, num_samples: int, schedule: NoiseSchedule) -> Tensor:
        cumulative = self.probabilities(schedule).cumsum(0)
        place = (torch.arange(num_samples) + torch.rand(num_samples, dtype=torch.float64)) / num_samples
        drawn = torch.searchsorted(cumulative, place * cumulative[-1], right=True).clamp(max=len(cumulative) - 1)
        return drawn[torch.randperm(num_samples)]
