"""Charts as pictures, drawn by matplotlib: for loggers, model cards and print."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from ldmprobe.tracking.charts.chart import Cells, Chart, Line, Panel, Points, positive
from ldmprobe.tracking.style import IDEAL, STEP_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = (4.6, 3.4)  # of a panel


def figure(chart: Chart, title: str = "") -> Figure:
    """Draw a chart with its title."""
    # Figure, not pyplot: no global state and no backend, so that it works in any thread of any program. Laid out by
    # hand: an engine takes longer than all the rest of a picture that every probe draws.
    from matplotlib.figure import Figure

    columns, rows = chart.columns, -(-len(chart.panels) // chart.columns)
    width, height = (3.1, 3.1) if chart.square else _INCHES
    top = 0.35 + 0.22 * len(title.splitlines())
    whole = (width * columns + 0.35, height * rows + top)
    drawn = Figure(figsize=whole)
    axes = drawn.subplots(rows, columns, squeeze=False)
    drawn.subplots_adjust(
        0.72 / whole[0], 0.5 / whole[1], 1 - 0.2 / whole[0], 1 - top / whole[1], wspace=0.26, hspace=0.34
    )
    for axis, panel in zip(axes.flat, chart.panels, strict=False):
        _draw(axis, panel, chart)
    for axis in axes.flat[len(chart.panels) :]:
        axis.axis("off")
    if chart.steps is not None and chart.steps[0] < chart.steps[1]:
        first, last = chart.steps
        for k, (color, step) in enumerate(((STEP_COLORS[0], first), (STEP_COLORS[-1], last))):
            place = (0.1 / whole[0], 1 - (0.1 + 0.16 * k) / whole[1])
            drawn.text(*place, f"● step {step:,}", color=color, fontsize=8, va="top")
    drawn.suptitle(title, fontsize=11, y=1 - 0.08 / whole[1], va="top")
    return drawn


def pixels(drawn: Figure, dpi: int = 100) -> np.ndarray:
    """Return a figure as pixels (H, W, 3), 8 bits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn.set_dpi(dpi)
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def png(drawn: Figure, dpi: int = 130) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _draw(axis: Axes, panel: Panel, chart: Chart) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    for mark in panel.marks:
        if isinstance(mark, Line):
            _line(axis, mark, panel)
        elif isinstance(mark, Points):
            x, y = mark.xy.T
            color = mark.color if isinstance(mark.color, str) else list(mark.color)
            axis.scatter(x, y, s=mark.size**2 / 3, c=color, alpha=mark.alpha, linewidths=0)
        else:
            _cells(axis, mark)
    if panel.level is not None:
        axis.axhline(panel.level, color=IDEAL, ls="--", lw=1.4, zorder=1)
    if panel.log:
        axis.set_yscale("log")
        axis.minorticks_off()
    if panel.log_x:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    if panel.x_range is not None:
        step = float(f"{0.7 * panel.x_range[1]:.1g}")
        axis.set(xlim=panel.x_range, aspect="equal", xticks=(-step, 0, step), yticks=(-step, 0, step))
    if panel.y_range is not None:
        axis.set_ylim(panel.y_range)
    axis.set_title(panel.title, fontsize=10)
    if not chart.square:
        axis.set_xlabel(panel.x, fontsize=9, labelpad=2)
        axis.set_ylabel(panel.y, fontsize=9, labelpad=2)
    if any(isinstance(mark, Line) and mark.name for mark in panel.marks):
        axis.legend(frameon=False, fontsize=8, loc="best" if len(panel.marks) < 4 else "upper left")


def _line(axis: Axes, mark: Line, panel: Panel) -> None:
    shown = positive if panel.log else np.asarray
    style = {"solid": "-", "dash": "--", "dot": ":"}[mark.dash]
    marker = "o" if mark.markers else ""
    axis.plot(
        positive(mark.x) if panel.log_x else mark.x,
        shown(mark.y),
        color=mark.color,
        ls=style,
        lw=0.7 * mark.width,
        marker=marker,
        ms=3,
        label=mark.name or None,
    )
    if mark.lower is not None and mark.upper is not None:
        axis.fill_between(mark.x, shown(mark.lower), shown(mark.upper), color=mark.color, alpha=0.2, lw=0)
    if mark.spread is not None:
        axis.errorbar(mark.x, mark.y, mark.spread, fmt="none", ecolor=mark.color, lw=0.8)


def _cells(axis: Axes, mark: Cells) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    image = axis.imshow(
        mark.values,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap=LinearSegmentedColormap.from_list("cells", mark.colors),
        vmin=mark.low,
        vmax=mark.high,
    )
    for set_ticks, labels in ((axis.set_xticks, mark.x), (axis.set_yticks, mark.y)):
        chosen = np.unique(np.linspace(0, len(labels) - 1, min(6, len(labels))).round().astype(int))
        set_ticks(chosen, [labels[i] for i in chosen])
    bar = axis.figure.colorbar(image, ax=axis, label=mark.unit, pad=0.02)
    bar.ax.tick_params(labelsize=8)
