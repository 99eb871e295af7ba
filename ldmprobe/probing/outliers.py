"""Outliers: by how much each noise level is surely worse than levels on both sides of it, and in what way.

The draws of a denoising probe are the same at every level, so that two levels are compared in pairs, draw by draw:
where images differ in brightness an offset is uncertain by several per cent of the noise, and the step in it from one
level to the next by a fraction of that. The heights are the probe's to find, since only it has the draws; a verdict
asks besides whether they last from one probe to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ldmprobe.analysis.faults import Levels, critical
from ldmprobe.analysis.humps import humps
from ldmprobe.analysis.intervals import clustered_pair_widths
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve


class Outlier(NamedTuple):
    """A way in which a level can stand out.

    Attributes:
        name: of the curve of heights.
        curve, ideal, sign: whose distance from what, to which side.
        least: what a healthy network's U-shape is uneven by, at most.
        paired: whether levels are compared draw by draw. Residuals and gains that are too small are not: unfinished
            training leaves humps in these that pairs would be sure of.
        moved: what of the latents' scale a distance moves.
        words: what is told of a height.
    """

    name: str
    curve: str
    ideal: float
    sign: int
    least: float
    paired: bool
    moved: Callable[[Levels, np.ndarray], np.ndarray]
    words: str


OUTLIERS = (
    Outlier(
        *("outlier/residual", "calibration_residual", 0.0, 1, 0.01, False, Levels.moved_by_residual),
        "a linear correction would remove {:.0%} more of the loss",
    ),
    Outlier(
        *("outlier/too_small", "prediction_gain", 1.0, 1, 0.015, False, Levels.moved_by_gain),
        "predictions are too small by {:.1%} more",
    ),
    Outlier(
        *("outlier/too_large", "prediction_gain", 1.0, -1, 0.02, True, Levels.moved_by_gain),
        "predictions are too large by {:.1%} more",
    ),
    Outlier(
        *("outlier/shifted", "prediction_offset", 0.0, 1, 0.01, True, Levels.moved_by_offset),
        "predictions are shifted by {:.1%} more of the noise",
    ),
)
OUTLIER_MOVES = 0.015  # of the latents' scale, at least: healthy networks have moved .012 halfway through training
METRICS = (
    Metric(
        "outlier/*", "Worse than both sides",
        "How far a level surely stands out from some level on either side of it, draws paired; below 0 where it does "
        "not. Training leaves the two ends for last, never a level between better ones.",
        shown="record",
    ),
)  # fmt: skip


def outliers(levels: Levels, curves: dict[str, Curve], draws: dict[str, Tensor], image: Tensor) -> dict[str, Curve]:
    """Return the heights of each kind of outlier; the two ends, which have no level on one side, have none: NaN.

    Args:
        curves: of the probe, with their 95 % intervals.
        draws: by curve, each draw's part in it, (N, L).
        image: of each draw, (N,).
    """
    once, pairwise = (critical(levels, sides) for sides in (2, 2 * len(levels.log_snr)))
    found = {}
    for kind in OUTLIERS:
        curve = curves[kind.curve]
        assert curve.upper is not None
        width = curve.upper - curve.value
        distance, pairs = kind.sign * (curve.value - kind.ideal), once * (width[:, None] + width)
        if kind.paired:
            pairs = pairwise * clustered_pair_widths(draws[kind.curve], image).numpy()
        else:
            distance = np.maximum(distance, 0.0)  # a level on the other side is no better than its ideal
        with np.errstate(invalid="ignore"):  # a network that has diverged
            height = humps(distance, once * width, pairs)
        found[kind.name] = Curve(curve.timestep, curve.log_snr, np.where(np.isfinite(height), height, np.nan))
    return found
