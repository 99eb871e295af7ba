"""From per-level curves to a few honest numbers: where loss can still be recovered, and how unevenly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BAND_WIDTH = 3.0  # in log-SNR


@dataclass(frozen=True)
class Band:
    """A band of log-SNR.

    Attributes:
        low, high: its edges.
        residual: R over the band: recoverable excess ÷ loss, both summed over its levels.
        lower: end of residual's 95 % interval.
        excess_nats: recoverable excess, in nats.
        share: of all bands' recoverable excess (negative excess counts as 0).
    """

    low: float
    high: float
    residual: float
    lower: float
    excess_nats: float
    share: float

    @property
    def name(self) -> str:
        return f"{self.low:+.0f}…{self.high:+.0f}".replace("-", "−")


@dataclass(frozen=True)
class Imbalance:
    """The summary of one denoising probe.

    Attributes:
        bands: by log-SNR, noisy to clean.
        gini: of the bands' recoverable excess: 0 if it is even, towards 1 if it is all in one band.
        sentence: for a person.
    """

    bands: list[Band]
    gini: float
    sentence: str


def summarise(
    log_snr: np.ndarray, residual: np.ndarray, half_width: np.ndarray, mse: np.ndarray, nats_per_mse: float
) -> Imbalance:
    """Bands, Gini and one sentence from calibration residuals.

    Args:
        log_snr, residual, half_width, mse: per level, (L,); the residual R_t with its 95 % half-width, and squared ε-error.
        nats_per_mse: ½ D Δlog-SNR.
    """
    band = np.floor(log_snr / BAND_WIDTH).astype(int)
    found = []
    for b in np.unique(band):
        here = band == b
        loss = mse[here].sum()
        value = float((residual * mse)[here].sum() / loss)
        # Levels share their images and noise, so their errors are taken to go together.
        width = float((half_width * mse)[here].sum() / loss)
        found.append(
            (
                b * BAND_WIDTH,
                (b + 1) * BAND_WIDTH,
                value,
                value - width,
                nats_per_mse * float((residual * mse)[here].sum()),
            )
        )
    positive = np.array([max(row[-1], 0.0) for row in found])
    total = positive.sum()
    shares = positive / total if total != 0 else np.zeros(len(found))  # NaN where a level's loss is
    bands = [Band(*row, share=float(share)) for row, share in zip(found, shares, strict=True)]
    return Imbalance(bands, _gini(positive), _sentence(bands))


def _gini(values: np.ndarray) -> float:
    ordered, n = np.sort(values), len(values)
    if n == 0 or ordered.sum() <= 0:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))


def _sentence(bands: list[Band]) -> str:
    lost = [band.name for band in bands if not np.isfinite(band.residual)]
    if lost:
        where = "at every noise level" if len(lost) == len(bands) else f"in log-SNR {', '.join(lost)}"
        return f"Predictions have NaN or Inf in them {where}: nothing can be said of these, nor of how the loss is shared out."
    above = sorted((band for band in bands if band.lower > 0.01), key=lambda band: -band.excess_nats)
    if not above:
        return "No band of noise levels still has a measurable linear excess: what R can see is calibrated to within 1 % of the loss."
    named = ", ".join(
        f"{band.name} still recovers {band.residual:.0%} of its loss ({band.excess_nats:.1f} nats)"
        for band in above[:3]
    )
    rest = [band for band in bands if band not in above[:3]]
    tail = (
        f"; the rest at most {max(band.residual for band in rest):.0%}"
        if rest and max(b.residual for b in rest) > 0
        else ""
    )
    return f"log-SNR {named}{tail}."
