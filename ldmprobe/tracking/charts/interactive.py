"""Charts as plotly figures, for pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ldmprobe.tracking.charts.chart import Cells, Chart, Line, Panel, Points, positive
from ldmprobe.tracking.style import ACCENT, DIVERGING, IDEAL, STEP_COLORS, rgb

MOST_MARKS = 6  # on a logarithmic axis
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
_GRID, _FRAME = "#eceef1", "#c9ced6"
_AXIS = {"automargin": True, "ticks": "", "title": {"standoff": 15}}
# What charts need of "plotly_white"; plotly takes a third of a second for a dozen copies of the whole.
_TEMPLATE = {"layout": {"hovermode": "closest", "autotypenumbers": "strict", "xaxis": _AXIS, "yaxis": _AXIS}}


def figure(chart: Chart) -> go.Figure:
    """Draw a chart."""
    rows = -(-len(chart.panels) // chart.columns)
    several = len(chart.panels) > 1
    drawn = make_subplots(
        rows,
        chart.columns,
        figure=go.Figure(layout={"template": _TEMPLATE}),
        subplot_titles=[_text(panel.title) for panel in chart.panels] if several else None,
        horizontal_spacing=0.06,
        vertical_spacing=0.14 if rows > 1 else 0.1,
    )
    layout: dict[str, Any] = {}
    for i, panel in enumerate(chart.panels):
        place = {"row": i // chart.columns + 1, "col": i % chart.columns + 1}
        for mark in panel.marks:
            drawn.add_traces(_traces(mark, panel), rows=place["row"], cols=place["col"])
        if panel.level is not None and (panel.level > 0 or not panel.log):
            drawn.add_hline(y=panel.level, line={"color": IDEAL, "dash": "dash", "width": 2}, **place)
        axis = f"axis{i + 1}" if i else "axis"
        layout["x" + axis], layout["y" + axis] = _axes(panel, titles=not several)
    if chart.steps is not None:
        drawn.add_trace(_step_colors(*chart.steps))
    named = any(trace.name and trace.showlegend for trace in drawn.data)
    drawn.update_layout(
        **layout,  # at once: each update of its own costs plotly milliseconds
        font={"family": _FONT, "size": 13, "color": "#2b2f36"},
        height=330 * rows + 60 if several else 420,
        margin={"l": 64, "r": 16, "t": 40 if several or named else 16, "b": 52},
        showlegend=named,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        hoverlabel={"bgcolor": "white"},
    )
    return drawn.update_annotations(font={"size": 12.5, "color": "#4a4f57"}) if several else drawn


def figure_across(charts: Mapping[str, Chart]) -> go.Figure:
    """Draw one chart, the axis across chosen by a row of buttons from those of ``charts``, which are else the same."""
    first = figure(next(iter(charts.values())))
    if len(charts) == 1:
        return first
    choices = []
    for label, chart in charts.items():
        panel = chart.panels[0]
        axis = {"xaxis.title.text": _text(panel.x), "xaxis.autorange": "reversed" if panel.falling else True}
        x = [trace.x for mark in panel.marks for trace in _traces(mark, panel)]
        x += [[None]] if chart.steps is not None else []
        choices.append({"label": label, "method": "update", "args": [{"x": x}, axis]})
    buttons = _buttons(choices) | {"x": 1, "xanchor": "right", "y": -0.19, "yanchor": "top"}
    return first.update_layout(updatemenus=[buttons], margin={"b": 100}, height=first.layout.height + 48)


def figure_of_choices(charts: Mapping[str, Chart]) -> go.Figure:
    """Draw one of several charts of the same axes at a time, chosen by a row of buttons."""
    first, *others = (figure(chart) for chart in charts.values())
    shown = [0] * len(first.data)
    for k, other in enumerate(others, start=1):
        first.add_traces(other.data)
        shown += [k] * len(other.data)
    if not others:
        return first
    for trace, k in zip(first.data, shown, strict=True):
        trace.visible = k == 0
    choices = [
        {"label": _text(label), "method": "update", "args": [{"visible": [k == chosen for k in shown]}]}
        for chosen, label in enumerate(charts)
    ]
    first.update_layout(updatemenus=[_buttons(choices)], margin={"t": 60})
    if first.layout.showlegend:
        first.update_layout(legend={"y": -0.2, "yanchor": "top"}, height=460)
    return first


def _buttons(choices: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return a row of buttons above the chart."""
    return {
        "type": "buttons", "direction": "right", "buttons": choices,
        "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom",
        "bgcolor": "#f4f5f7", "bordercolor": "#dfe3e8", "font": {"size": 12 if len(choices) < 3 else 11},
    }  # fmt: skip


def figure_over_training(charts: Mapping[int, Chart]) -> go.Figure:
    """Draw the last of several charts, by training step, with a slider that moves its points to where they are in the
    others.
    """
    drawn = figure(charts[max(charts)])
    moving = [k for k, trace in enumerate(drawn.data) if trace.meta == "moves"]
    drawn.frames = [
        go.Frame(
            name=str(step),
            traces=moving,
            data=[
                go.Scatter(x=_short(mark.xy[:, 0]), y=_short(mark.xy[:, 1]))
                for panel in chart.panels
                for mark in panel.marks
                if isinstance(mark, Points) and mark.moves
            ],
        )
        for step, chart in charts.items()
    ]
    animation = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 250}}
    slider = {
        "active": len(charts) - 1,
        "currentvalue": {"prefix": "training step ", "font": {"size": 13}},
        "pad": {"t": 36, "b": 6},
        "bgcolor": "#dfe3e8",
        "bordercolor": "#dfe3e8",
        "activebgcolor": ACCENT,
        "steps": [{"label": f"{step:,}", "method": "animate", "args": [[str(step)], animation]} for step in charts],
    }
    return drawn.update_layout(sliders=[slider], height=drawn.layout.height + 60)


def _traces(mark: Line | Points | Cells, panel: Panel) -> list[go.Scatter | go.Heatmap]:
    if isinstance(mark, Line):
        return _line(mark, panel)
    if isinstance(mark, Cells):
        return [_cells(mark)]
    return [
        go.Scatter(
            x=_short(mark.xy[:, 0]),
            y=_short(mark.xy[:, 1]),
            mode="markers",
            name=_text(mark.name),
            showlegend=False,
            text=list(mark.hover) or None,
            hoverinfo="text" if mark.hover else "skip",
            marker={"color": mark.color, "size": mark.size, "opacity": mark.alpha, "line": {"width": 0}},
            meta="moves" if mark.moves else None,
        )
    ]


def _line(mark: Line, panel: Panel) -> list[go.Scatter]:
    traces = []
    if mark.lower is not None and mark.upper is not None and np.isfinite(mark.y).all():
        lower = np.maximum(mark.lower, np.abs(mark.y) * 1e-2) if panel.log else mark.lower
        traces.append(
            go.Scatter(
                x=np.concatenate([mark.x, mark.x[::-1]]),
                y=np.concatenate([mark.upper, lower[::-1]]),
                fill="toself",
                fillcolor=f"rgba({','.join(map(str, rgb(mark.color)))},0.2)",
                mode="lines",  # plotly adds markers where there are few points
                line={"width": 0},
                showlegend=False,
                legendgroup=mark.name,
                hoverinfo="skip",
            )
        )
    y = positive(mark.y) if panel.log else mark.y
    traces.append(
        go.Scatter(
            x=mark.x,
            y=[float(value) if np.isfinite(value) else None for value in y],
            mode="lines+markers" if mark.markers else "lines",
            name=_text(mark.name),
            legendgroup=mark.name,
            showlegend=bool(mark.name),
            line={"color": mark.color, "dash": mark.dash, "width": mark.width},
            error_y=None if mark.spread is None else {"array": mark.spread, "thickness": 1, "width": 0},
            hovertemplate=f"{_text(mark.hover or mark.name)}<br>%{{x:,.4~f}}: %{{y:.4g}}<extra></extra>",
        )
    )
    return traces


def _cells(mark: Cells) -> go.Heatmap:
    colors = (DIVERGING if mark.high_is_good else DIVERGING[::-1]) if mark.diverging else STEP_COLORS
    return go.Heatmap(
        x=list(mark.x),
        y=list(mark.y),
        z=mark.values,
        zmin=mark.low,
        zmax=mark.high,
        colorscale=_scale(colors),
        colorbar={
            "title": {"text": _text(mark.unit), "side": "right", "font": {"size": 12}},
            "thickness": 10,
            "outlinewidth": 0,
        },
        hovertemplate="training step %{x}<br>log-SNR %{y}<br>%{z:.3g}<extra></extra>",
    )


def _axes(panel: Panel, titles: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    looks = {"gridcolor": _GRID, "zeroline": False, "linecolor": _FRAME}
    x = {**looks, "range": panel.x_range, "autorange": "reversed" if panel.falling else None}
    y = {**looks, "range": panel.y_range}
    if any(isinstance(mark, Cells) for mark in panel.marks):
        x |= {"type": "category"}
        y |= {"type": "category", "nticks": 12}
    if titles:
        x |= {"title": {"text": _text(panel.x), "font": {"size": 12.5}}}
        y |= {"title": {"text": _text(panel.y), "font": {"size": 12.5}}, "exponentformat": "power"}
    if panel.log:
        lines = [positive(mark.y) for mark in panel.marks if isinstance(mark, Line)]
        values = np.concatenate(lines)[np.isfinite(np.concatenate(lines))]
        decades = float(np.ptp(np.log10(values))) if values.size else 0.0
        if decades < 1.5:  # plotly's own marks leave out the powers of ten
            marks = [digit * 10.0**power for power in range(-12, 12) for digit in (1, 2, 3, 5, 7)]
            y |= {"type": "log", "tickvals": marks, "ticktext": [f"{mark:,g}" for mark in marks]}
        else:
            per_mark = max(1, int(np.ceil((decades + 1) / MOST_MARKS)))
            y |= {"type": "log", "exponentformat": "power", "dtick": per_mark}
    return x, y


def _step_colors(low: int, high: int) -> go.Scatter:
    bar = {"title": {"text": "training<br>step", "font": {"size": 12}}, "thickness": 10, "len": 0.8, "outlinewidth": 0}
    marker = {"color": [low], "cmin": low, "cmax": max(high, low + 1), "colorscale": _scale(STEP_COLORS)}
    return go.Scatter(
        x=[None], y=[None], mode="markers", showlegend=False, hoverinfo="skip",
        marker={**marker, "showscale": True, "colorbar": bar},
    )  # fmt: skip


def _scale(colors: Sequence[str]) -> list[list[Any]]:
    return [[i / (len(colors) - 1), color] for i, color in enumerate(colors)]


def _short(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 3) if np.isfinite(value) else None for value in values]


def _text(text: str) -> str:
    """Text as text: plotly would take some markup, though no script, from it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")
