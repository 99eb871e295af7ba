"""The frame of a panel: which numbers its axes reach over, and where each of them lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ldmprobe.tracking.charts.chart import Cells, Line, Panel, Points, positive
from ldmprobe.tracking.charts.ticks import Tick, binary_ticks, linear_ticks, log_ticks

EDGE = 1000  # units of a frame across and down, whatever its size on a screen
_FAR = 3 * EDGE  # as far outside as anything is drawn


@dataclass(frozen=True)
class FrameAxis:
    """An axis, across from the left or down from the top.

    Attributes:
        first, last: the numbers at its two ends, in its own scale: logarithms where it is logarithmic.
        ticks: its marks.
    """

    first: float
    last: float
    log: bool
    ticks: Sequence[Tick] = ()

    def places(self, values: np.ndarray) -> np.ndarray:
        """Return where numbers lie, 0 … ``EDGE``; NaN for those that have no place."""
        values = np.asarray(values, dtype=float)
        scaled = np.log10(positive(values)) if self.log else values
        shares = (scaled - self.first) / ((self.last - self.first) or 1.0)
        return np.clip(np.where(np.isfinite(shares), shares, np.nan) * EDGE, -_FAR, _FAR)

    def place(self, value: float) -> float:
        """Return where a number lies."""
        return float(self.places(np.array([value]))[0])

    @property
    def told(self) -> str:
        """The axis in words that the page's script reads numbers off with."""
        return f"{self.first:.8g},{self.last:.8g},{int(self.log)}"


@dataclass(frozen=True)
class Frame:
    """Two axes."""

    x: FrameAxis
    y: FrameAxis


def frame_of(panel: Panel) -> Frame:
    """Return the frame that holds what a panel shows."""
    for mark in panel.marks:
        if isinstance(mark, Cells):
            columns, rows = _labels(mark.x, 7), _labels(mark.y[::-1], 12)
            return Frame(FrameAxis(0, len(mark.x), False, columns), FrameAxis(0, len(mark.y), False, rows))
    levels = np.array([] if panel.level is None else [panel.level])
    across = np.concatenate([np.empty(0), *(_across(mark) for mark in panel.marks)])
    upward = np.concatenate([levels, *(_upward(mark, panel.log) for mark in panel.marks)])
    x = _axis(panel.x_range, across, panel.log_x, binary_ticks if panel.log_x else linear_ticks, 0.02)
    y = _axis(panel.y_range, upward, panel.log, log_ticks if panel.log else linear_ticks, 0.06)
    if across.size and not panel.log_x and np.array_equal(across, np.round(across)):
        x = replace(x, ticks=[tick for tick in x.ticks if float(tick[0]).is_integer()])
    return Frame(x, replace(y, first=y.last, last=y.first))


def _axis(
    limits: tuple[float, float] | None,
    values: np.ndarray,
    log: bool,
    ticks: Callable[[float, float], list[Tick]],
    margin: float,
) -> FrameAxis:
    """Return an axis over ``limits`` or, without, over the values and a margin."""
    if limits is None:
        scaled = np.log10(positive(values)) if log else values
        scaled = scaled[np.isfinite(scaled)]
        low, high = (float(scaled.min()), float(scaled.max())) if scaled.size else (0.0, 1.0)
        around = margin * (high - low) or 0.05 * abs(high) or 0.5
        low, high = low - around, high + around
    else:
        low, high = (float(np.log10(limit)) for limit in limits) if log else limits
    marks = ticks(10.0**low, 10.0**high) if log else ticks(low, high)
    return FrameAxis(low, high, log, marks)


def _across(mark: Line | Points | Cells) -> np.ndarray:
    if isinstance(mark, Line):
        return np.asarray(mark.x, dtype=float)
    return mark.xy[:, 0] if isinstance(mark, Points) else np.empty(0)


def _upward(mark: Line | Points | Cells, log: bool) -> np.ndarray:
    if isinstance(mark, Points):
        return mark.xy[:, 1]
    if not isinstance(mark, Line):
        return np.empty(0)
    bars = [] if mark.spread is None or log else [mark.y - mark.spread, mark.y + mark.spread]
    ends = [end for end in (mark.lower, mark.upper) if end is not None and not log]
    return np.concatenate([np.asarray(each, dtype=float) for each in (mark.y, *bars, *ends)])


def _labels(names: Sequence[str], at_most: int) -> list[Tick]:
    """Return marks in the middle of some columns or rows."""
    chosen = np.unique(np.linspace(0, len(names) - 1, min(at_most, len(names))).round().astype(int))
    return [(i + 0.5, names[i]) for i in chosen.tolist()]
