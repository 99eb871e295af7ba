"""Chart: what is drawn, whoever draws it: panels of lines, points or cells, with their axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldmprobe.tracking.style import DIVERGING, STEP_COLORS


@dataclass(frozen=True)
class Line:
    """A line through points (N,).

    Attributes:
        name: in the legend, unless it is empty.
        dash: "solid", "dash" or "dot".
        lower, upper: the ends of an interval that is shaded, (N,).
        spread: the half-widths of error bars, (N,).
        hover: what is said before the numbers of the point that one hovers over.
        step: the training step that it shows, where there are several.
    """

    x: np.ndarray
    y: np.ndarray
    color: str
    name: str = ""
    dash: str = "solid"
    width: float = 1.5
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    spread: np.ndarray | None = None
    markers: bool = False
    hover: str = ""
    step: int | None = None


@dataclass(frozen=True)
class Points:
    """A cloud of points (N, 2), in one color or one each.

    Attributes:
        hover: what is said of each point that one hovers over; empty where nothing is.
        moves: whether a slider over training moves it.
    """

    xy: np.ndarray
    color: str | Sequence[str]
    name: str
    size: float = 4.0
    alpha: float = 0.6
    hover: Sequence[str] = ()
    moves: bool = False


@dataclass(frozen=True)
class Cells:
    """A heatmap of values (Y, X), with labels of rows and columns.

    Attributes:
        low, high: values that have the ends of the color scale.
        diverging: whether the middle between them is white; "good" ends are blue, others red.
        high_is_good: which end is blue.
        unit: above the color bar.
    """

    x: Sequence[str]
    y: Sequence[str]
    values: np.ndarray
    low: float
    high: float
    unit: str
    diverging: bool = True
    high_is_good: bool = True

    @property
    def colors(self) -> list[str]:
        """The color scale, from low to high."""
        return (DIVERGING if self.high_is_good else DIVERGING[::-1]) if self.diverging else STEP_COLORS


@dataclass(frozen=True)
class Panel:
    """A pair of axes and what is drawn on it.

    Attributes:
        level: where a dashed horizontal line is drawn.
        y_range: as far as the axis reaches; default: as far as there is something to see.
        log, log_x: whether the axis of y or x is logarithmic.
    """

    marks: Sequence[Line | Points | Cells]
    x: str = ""
    y: str = ""
    title: str = ""
    level: float | None = None
    log: bool = False
    log_x: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Chart:
    """Panels in rows of ``columns``.

    Attributes:
        steps: the training steps that the first and last color of ``tracking.style.STEP_COLORS`` stand for.
    """

    panels: Sequence[Panel]
    columns: int = 1
    steps: tuple[int, int] | None = None
    square: bool = False


def positive(values: np.ndarray) -> np.ndarray:
    """Return values for a logarithmic axis: what is not positive becomes a gap."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def cut_off(chart: Chart) -> str:
    """Return how many values of lines lie outside their frame, and how far they reach, as a sentence; "" if none do."""
    outside = [
        value
        for panel in chart.panels
        if panel.y_range is not None
        for mark in panel.marks
        if isinstance(mark, Line)
        for value in mark.y[np.isfinite(mark.y)]
        if not panel.y_range[0] <= value <= panel.y_range[1]
    ]
    if not outside:
        return ""
    low, high = f"{min(outside):,.3g}".replace("-", "−"), f"{max(outside):,.3g}".replace("-", "−")
    reach = f"1 value, {low}, lies" if len(outside) == 1 else f"{len(outside)} values, from {low} to {high}, lie"
    return f"{reach} outside the frame."
