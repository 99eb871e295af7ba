"""From per-level curves to a few honest numbers: where loss can still be recovered, and how unevenly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe.analysis.bands import bands_of
from ldmprobe.analysis.calibration import cross_fit_cost


@dataclass(frozen=True)
class Band:
    """The verdict of R on a band of log-SNR.

    Attributes:
        low, high: the band's edges.
        name: the same as far as the grid reaches.
        residual: R over the band: recoverable excess ÷ loss, both summed over its levels.
        lower: end of residual's 95 % interval.
        upper: the largest share that could be recoverable: the other end, and what the cross-fit makes R read too low.
        excess_nats: recoverable excess, in nats.
        upper_nats: the same at ``upper``.
        share: of all bands' recoverable excess (negative excess counts as 0).
    """

    low: float
    high: float
    name: str
    residual: float
    lower: float
    upper: float
    excess_nats: float
    upper_nats: float
    share: float


@dataclass(frozen=True)
class Imbalance:
    """The spread over noise levels of the recoverable excess that one denoising probe found.

    Attributes:
        bands: by log-SNR, noisy to clean.
        gini: of the bands' recoverable excess: 0 if it is even, towards 1 if it is all in one band.
    """

    bands: list[Band]
    gini: float


def summarize(
    log_snr: np.ndarray, residual: np.ndarray, half_width: np.ndarray, mse: np.ndarray, nats: np.ndarray, num_draws: int
) -> Imbalance:
    """Bands and their Gini from calibration residuals.

    Args:
        log_snr, residual, half_width, mse: per level, (L,); the residual R_t with its 95 % half-width, and squared
            ε-error.
        nats: of the likelihood bound per unit of error at each level, (L,).
        num_draws: that R was fitted on, at each level.
    """
    # Levels share their images and noise, so their errors are taken to go together.
    highest = residual + half_width + (1 - residual) * cross_fit_cost(num_draws)
    bands = bands_of(log_snr)
    excess = [float(band.sum(nats * residual * mse)) for band in bands]
    positive = np.maximum(excess, 0.0)
    total = positive.sum()
    shares = positive / total if total != 0 else np.zeros(len(bands))  # NaN where a level's loss is
    found = []
    for band, nats_here, share in zip(bands, excess, shares, strict=True):
        mean, lower, upper = (
            float(band.sum(mse * values) / band.sum(mse)) for values in (residual, residual - half_width, highest)
        )
        upper_nats = float(band.sum(nats * highest * mse))
        found.append(Band(band.low, band.high, band.name, mean, lower, upper, nats_here, upper_nats, float(share)))
    return Imbalance(found, _gini(positive))


def _gini(values: np.ndarray) -> float:
    ordered, n = np.sort(values), len(values)
    if n == 0 or ordered.sum() <= 0:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))
