"""Charts as HTML for pages: the marks are SVG that stretches with the page, the words beside them are HTML.

The numbers that are said of a point are read off its place (``tracking/page.js``), so that a page holds each only once.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

import numpy as np
from PIL import Image

from ldmprobe.tracking.charts.chart import Cells, Chart, Line, Panel, Points, positive
from ldmprobe.tracking.charts.frame import EDGE, Frame, frame_of
from ldmprobe.tracking.style import STEP_COLORS, rgb

_DASHES = {"solid": "", "dash": ' stroke-dasharray="6 4"', "dot": ' stroke-dasharray="2 3"'}
_GAP = 255  # the shade of a cell without a value; the others have 0 to 254


def drawn(chart: Chart, moving: Sequence[Mapping[int, str]] = ()) -> str:
    """Return a chart as HTML.

    Args:
        moving: for each panel, the places of its moving points by training step; default: nothing moves.
    """
    titled = len(chart.panels) > 1
    still: Sequence[Mapping[int, str]] = [{}] * len(chart.panels)
    panels = "".join(
        _panel(panel, chart.square, titled, each) for panel, each in zip(chart.panels, moving or still, strict=True)
    )
    square = " square" if chart.square else ""
    return f'<div class="chart{square}">{_legend(chart)}<div class="panels">{panels}</div></div>'


def drawn_by_choice(charts: Mapping[str, Chart]) -> str:
    """Return one of several charts at a time, chosen by a row of buttons."""
    if len(charts) == 1:
        return drawn(next(iter(charts.values())))
    buttons = "".join(
        f'<button type="button" aria-pressed="{str(k == 0).lower()}">{escape(label)}</button>'
        for k, label in enumerate(charts)
    )
    choices = "".join(f"<div{' hidden' * (k > 0)}>{drawn(chart)}</div>" for k, chart in enumerate(charts.values()))
    return f'<div class="choice"><div class="buttons">{buttons}</div>{choices}</div>'


def drawn_over_training(charts: Mapping[int, Chart]) -> str:
    """Return the last of several charts, by training step; the page's slider moves its points to where they are in the
    others.
    """
    last = charts[max(charts)]
    moving = []
    for k, panel in enumerate(last.panels):
        frame = frame_of(panel)
        moving.append(
            {step: _moved(chart.panels[k].marks, frame) for step, chart in charts.items() if k < len(chart.panels)}
        )
    return drawn(last, moving)


# --- a panel ---------------------------------------------------------------------------------------------------------


def _panel(panel: Panel, square: bool, titled: bool, moving: Mapping[int, str]) -> str:
    frame = frame_of(panel)
    grid = "".join(f"M0 {frame.y.place(y):.4g}H{EDGE}" for y, _ in frame.y.ticks)
    if square:
        grid += "".join(f"M{frame.x.place(x):.4g} 0V{EDGE}" for x, _ in frame.x.ticks)
    marks = f'<path class="grid" d="{grid}"/>' + "".join(_mark(mark, frame) for mark in panel.marks)
    if panel.level is not None and np.isfinite(place := frame.y.place(panel.level)):
        marks += f'<path class="level" d="M0 {place:.4g}H{EDGE}"/>'
    told = f' data-x="{frame.x.told}" data-y="{frame.y.told}"'
    if len(moving) > 1:
        told += f' data-steps="{",".join(map(str, moving))}" data-moves="{",".join(moving.values())}"'
    up = "".join(f'<i style="top:{frame.y.place(y) / EDGE:.2%}">{escape(text)}</i>' for y, text in frame.y.ticks)
    across = "".join(f'<i style="left:{frame.x.place(x) / EDGE:.2%}">{escape(text)}</i>' for x, text in frame.x.ticks)
    title = f"<h3>{escape(panel.title)}</h3>" if titled else f'<div class="up">{escape(panel.y)}</div>'
    name = "" if titled or not panel.x else f'<div class="across">{escape(panel.x)}</div>'
    return (
        f'<figure{told}>{title}<div class="ticks-y">{up}</div><div class="plot">'
        f'<svg viewBox="0 0 {EDGE} {EDGE}" preserveAspectRatio="none" aria-hidden="true">{marks}</svg></div>'
        f'<div class="ticks-x">{across}</div>{name}</figure>'
    )


def _mark(mark: Line | Points | Cells, frame: Frame) -> str:
    if isinstance(mark, Line):
        return _line(mark, frame)
    return _cells(mark) if isinstance(mark, Cells) else _points(mark, frame)


def _line(mark: Line, frame: Frame) -> str:
    shape = ""
    if mark.lower is not None and mark.upper is not None and np.isfinite(mark.y).all() and len(mark.y):
        lower = np.maximum(mark.lower, np.abs(mark.y) * 1e-2) if frame.y.log else mark.lower
        x = np.concatenate([mark.x, mark.x[::-1]])
        around = _path(frame, x, np.concatenate([mark.upper, lower[::-1]]))
        shape += f'<path class="interval" fill="{mark.color}" d="{around}Z"/>'
    if mark.spread is not None:
        ends = np.stack([mark.y - mark.spread, mark.y + mark.spread], 1).ravel()
        pairs = zip(np.split(np.repeat(mark.x, 2), len(mark.x)), np.split(ends, len(mark.x)), strict=True)
        bars = "".join(_path(frame, x, y) for x, y in pairs if np.isfinite(y).all())
        shape += f'<path class="bar" stroke="{mark.color}" d="{bars}"/>'
    y = positive(mark.y) if frame.y.log else mark.y
    path = _path(frame, mark.x, y)
    step = "" if mark.step is None else f' data-step="{mark.step}"'
    said = f' data-name="{escape(mark.hover or mark.name)}"'
    style = f'stroke="{mark.color}" stroke-width="{mark.width:g}"{_DASHES[mark.dash]}'
    shape += f'<path class="line" {style}{step}{said} d="{path}"/>'
    if mark.markers:
        shape += f'<path class="dots" stroke="{mark.color}" stroke-width="6" d="{_dots(frame, mark.x, y)}"/>'
    return shape


def _points(mark: Points, frame: Frame) -> str:
    """A path for each color; a point is a line of no length with round ends, so that it is round whatever stretches."""
    x, y = mark.xy.T
    colors = [mark.color] * len(x) if isinstance(mark.color, str) else list(mark.color)
    order = sorted(range(len(x)), key=lambda i: colors[i])
    paths = []
    for color, members in groupby(order, key=lambda i: colors[i]):
        chosen = list(members)
        which = f' data-points="{",".join(map(str, chosen))}"' if mark.moves else ""
        style = f'stroke="{color}" stroke-width="{mark.size:g}" opacity="{mark.alpha:g}"'
        paths.append(f'<path class="dots" {style}{which} d="{_dots(frame, x[chosen], y[chosen])}"/>')
    return "".join(paths)


def _cells(mark: Cells) -> str:
    """A picture with a pixel a cell; its shades are also what is said of a cell."""
    stops = np.array([rgb(color) for color in mark.colors], dtype=float)
    shades = np.linspace(0, len(stops) - 1, _GAP)
    palette = np.stack([np.interp(shades, range(len(stops)), channel) for channel in stops.T], 1).round()
    reach = (mark.high - mark.low) or 1.0
    share = np.clip((mark.values[::-1] - mark.low) / reach, 0, 1)
    index = np.where(np.isfinite(share), np.nan_to_num(share) * (_GAP - 1), _GAP).round().astype(np.uint8)
    image, file = Image.fromarray(index, "P"), io.BytesIO()
    image.putpalette([*palette.astype(int).ravel().tolist(), 238, 238, 238])
    image.save(file, "PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    told = (
        f' data-columns="{escape("|".join(mark.x))}" data-rows="{escape("|".join(mark.y[::-1]))}"'
        f' data-low="{mark.low:.6g}" data-high="{mark.high:.6g}"'
        f' data-shades="{base64.b64encode(index.tobytes()).decode()}"'
    )
    return f'<image class="cells" href="{uri}" width="{EDGE}" height="{EDGE}" preserveAspectRatio="none"{told}/>'


# --- what stands above -----------------------------------------------------------------------------------------------


def _legend(chart: Chart) -> str:
    entries = {}
    for panel in chart.panels:
        for mark in panel.marks:
            if isinstance(mark, Cells):
                entries["cells"] = _scale(mark)
            elif isinstance(mark, Line) and mark.name:
                path = f'<path stroke="{mark.color}" stroke-width="2.4"{_DASHES[mark.dash]} d="M0 5H24"/>'
                entries[mark.name] = f'<span><svg width="24" height="10">{path}</svg>{escape(mark.name)}</span>'
    if chart.steps is not None and chart.steps[0] < chart.steps[1]:
        first, last = chart.steps
        bar = f'<b class="bar" style="background:linear-gradient(90deg,{",".join(STEP_COLORS)})"></b>'
        entries["steps"] = f"<span>training step {first:,}{bar}{last:,}</span>"
    return f'<div class="legend">{"".join(entries.values())}</div>' if entries else ""


def _scale(mark: Cells) -> str:
    bar = f'<b class="bar" style="background:linear-gradient(90deg,{",".join(mark.colors)})"></b>'
    return f"<span>{_signed(mark.low)}{bar}{_signed(mark.high)} {escape(mark.unit)}</span>"


# --- pieces ----------------------------------------------------------------------------------------------------------


def _path(frame: Frame, x: np.ndarray, y: np.ndarray) -> str:
    """Return a line through points, with gaps where they are not finite."""
    places = zip(frame.x.places(x).tolist(), frame.y.places(y).tolist(), strict=True)
    parts, command = [], "M"
    for across, down in places:
        if not (np.isfinite(across) and np.isfinite(down)):
            command = "M"
            continue
        parts.append(f"{command}{across:.4g} {down:.4g}")
        command = "L"
    return "".join(parts)


def _dots(frame: Frame, x: np.ndarray, y: np.ndarray) -> str:
    """Return points, each at a whole thousandth of the panel: finer is not seen, and they are most of a page's size."""
    places = zip(frame.x.places(x).tolist(), frame.y.places(y).tolist(), strict=True)
    return "".join(f"M{a:.0f} {b:.0f}h0" for a, b in places if np.isfinite(a) and np.isfinite(b))


def _moved(marks: Sequence[Line | Points | Cells], frame: Frame) -> str:
    """Return the places of points that move, in four letters each: 12 bits across, 12 down; 0 where it has none."""
    (mark,) = [mark for mark in marks if isinstance(mark, Points) and mark.moves]
    across, down = frame.x.places(mark.xy[:, 0]), frame.y.places(mark.xy[:, 1])
    gone = ~(np.isfinite(across) & np.isfinite(down))
    x, y = (
        np.where(gone, 0, np.clip(axis * 4095 / EDGE, 1, 4095)).round().astype(np.uint32) for axis in (across, down)
    )
    both = x << 12 | y
    return base64.b64encode(np.stack([both >> 16, both >> 8 & 255, both & 255], 1).astype(np.uint8).tobytes()).decode()


def _signed(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
