"""Are two denoisers different, where, and how many training steps is that worth? Paired statistics of per-draw errors.

Both denoise the same noised images, so what differs between images cancels in the difference of their errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldmprobe.analysis.bands import bands_of
from ldmprobe.analysis.intervals import clustered_mean


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values (K,) corrected for there being K of them (Holm, 1979): none is wrongly below α with probability 1 − α.
    NaN are passed over.
    """
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factor = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factor * p_values[order]), 1.0)
    return adjusted


@dataclass(frozen=True)
class BandGain:
    """By how much one denoiser is better than another within a band of log-SNR.

    Attributes:
        low, high: the band's edges; infinite for all noise levels together.
        name: the edges as far as the grid reaches, or "all".
        gain: in nats of the likelihood bound; above 0 is better.
        half_width: of its 95 % interval.
        p_value: of no difference, on its own.
        adjusted: the same, corrected for everything it was tested together with.
    """

    low: float
    high: float
    name: str
    gain: float
    half_width: float
    p_value: float
    adjusted: float

    @property
    def everywhere(self) -> bool:
        return bool(np.isinf(self.low))

    @property
    def significant(self) -> bool:
        """At 5 %, corrected."""
        return self.adjusted < 0.05


def gains_by_band(
    log_snr: np.ndarray, first: np.ndarray, others: Sequence[np.ndarray], cluster: np.ndarray, nats: np.ndarray
) -> list[list[BandGain]]:
    """Return the gain of each other denoiser over the first, by band, noisy to clean, and over all levels at the end.

    The bands of all denoisers are corrected as one family (Holm), and so are their totals.

    Args:
        log_snr: of the levels, (L,).
        first, others: squared errors per level and draw, (L, N) each, of the same images and noise.
        cluster: the image of each draw, (N,).
        nats: of the likelihood bound per unit of error at each level, (L,).
    """
    bands = bands_of(log_snr)
    places = [*((band.low, band.high, band.name) for band in bands), (-np.inf, np.inf, "all")]
    found = []
    for other in others:
        each = nats[:, None] * (first - other)
        found.append(clustered_mean(np.stack([*(band.sum(each) for band in bands), each.sum(0)]), cluster))
    if not found:
        return []
    p_values = np.stack([gain.p_value for gain in found])  # (others, bands + 1)
    adjusted = np.concatenate(
        [holm(p_values[:, :-1].ravel()).reshape(len(found), -1), holm(p_values[:, -1])[:, None]], 1
    )
    return [
        [
            BandGain(
                low, high, name, *(float(each[k]) for each in (gain.value, gain.half_width, gain.p_value, corrected))
            )
            for k, (low, high, name) in enumerate(places)
        ]
        for gain, corrected in zip(found, adjusted, strict=True)
    ]


@dataclass(frozen=True)
class StepsToReach:
    """Training steps until an excess has gone, interpolated between probes; NaN where it has not.

    Attributes:
        steps: where the excess itself crosses 0.
        lower, upper: where the ends of its 95 % interval do.
    """

    steps: float
    lower: float
    upper: float


def steps_to_reach(steps: np.ndarray, excess: np.ndarray, half_width: np.ndarray) -> StepsToReach:
    """When ``excess`` (K,), known to within ``half_width``, first falls to 0 over the probes at ``steps``."""
    lower, upper = excess - half_width, excess + half_width
    return StepsToReach(*(_first_crossing(steps, values) for values in (excess, lower, upper)))


def _first_crossing(steps: np.ndarray, values: np.ndarray) -> float:
    below = np.flatnonzero(values <= 0)
    if not below.size:
        return float("nan")
    k = int(below[0])
    if k == 0 or not np.isfinite(values[k - 1]):
        return float(steps[k])
    share = values[k - 1] / (values[k - 1] - values[k])
    return float(steps[k - 1] + share * (steps[k] - steps[k - 1]))
