"""Charts as figures of plotly.js, for pages: plain dictionaries of ``data``, ``layout`` and, with a slider, ``frames``.
Plotly's own figure objects check every entry, which takes ten times as long as drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldmprobe.tracking.charts.chart import Cells, Chart, Line, Panel, Points, positive
from ldmprobe.tracking.style import ACCENT, DIVERGING, IDEAL, STEP_COLORS, rgb
from ldmprobe.types import PlainValues

MOST_MARKS = 6  # on a logarithmic axis
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
_GRID, _FRAME = "#eceef1", "#c9ced6"
_AXIS = {"automargin": True, "ticks": "", "title": {"standoff": 15}}
_TEMPLATE = {"layout": {"hovermode": "closest", "autotypenumbers": "strict", "xaxis": _AXIS, "yaxis": _AXIS}}
_ACROSS, _DOWN = 0.06, 0.14  # shares of the figure between its panels


def figure(chart: Chart) -> PlainValues:
    """Draw a chart."""
    rows = -(-len(chart.panels) // chart.columns)
    several = len(chart.panels) > 1
    data: list[PlainValues] = []
    layout: PlainValues = {"template": _TEMPLATE, "annotations": [], "shapes": []}
    for i, panel in enumerate(chart.panels):
        number = str(i + 1) if i else ""
        x, y = _axes(panel, titles=not several)
        x |= {"anchor": f"y{number}", "domain": _share(i % chart.columns, chart.columns, _ACROSS)}
        y |= {"anchor": f"x{number}", "domain": _share(rows - 1 - i // chart.columns, rows, _DOWN)}
        layout[f"xaxis{number}"], layout[f"yaxis{number}"] = x, y
        for mark in panel.marks:
            data += [{**trace, "xaxis": f"x{number}", "yaxis": f"y{number}"} for trace in _traces(mark, panel)]
        if several:
            layout["annotations"].append(
                {
                    "text": _text(panel.title), "showarrow": False, "xref": "paper", "yref": "paper",
                    "x": sum(x["domain"]) / 2, "y": y["domain"][1], "xanchor": "center", "yanchor": "bottom",
                    "font": {"size": 12.5, "color": "#4a4f57"},
                }
            )  # fmt: skip
        if panel.level is not None and (panel.level > 0 or not panel.log):
            layout["shapes"].append(
                {
                    "type": "line", "xref": f"x{number} domain", "yref": f"y{number}", "x0": 0, "x1": 1,
                    "y0": panel.level, "y1": panel.level, "line": {"color": IDEAL, "dash": "dash", "width": 2},
                }
            )  # fmt: skip
    if chart.steps is not None:
        data.append(_step_colors(*chart.steps))
    named = any(trace.get("name") and trace["showlegend"] for trace in data)
    layout |= {
        "font": {"family": _FONT, "size": 13, "color": "#2b2f36"},
        "height": 330 * rows + 60 if several else 420,
        "margin": {"l": 64, "r": 16, "t": 40 if several or named else 16, "b": 52},
        "showlegend": named,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        "hoverlabel": {"bgcolor": "white"},
    }
    return {"data": data, "layout": layout}


def figure_across(charts: Mapping[str, Chart]) -> PlainValues:
    """Draw one chart, the axis across chosen by a row of buttons from those of ``charts``, which are else the same."""
    drawn = figure(next(iter(charts.values())))
    if len(charts) == 1:
        return drawn
    choices = []
    for label, chart in charts.items():
        panel = chart.panels[0]
        axis = {"xaxis.title.text": _text(panel.x), "xaxis.autorange": "reversed" if panel.falling else True}
        x = [trace["x"] for mark in panel.marks for trace in _traces(mark, panel)]
        x += [[None]] if chart.steps is not None else []
        choices.append({"label": label, "method": "update", "args": [{"x": x}, axis]})
    buttons = _buttons(choices) | {"x": 1, "xanchor": "right", "y": -0.19, "yanchor": "top"}
    layout = drawn["layout"]
    layout |= {"updatemenus": [buttons], "height": layout["height"] + 48, "margin": layout["margin"] | {"b": 100}}
    return drawn


def figure_of_choices(charts: Mapping[str, Chart]) -> PlainValues:
    """Draw one of several charts of the same axes at a time, chosen by a row of buttons."""
    figures = [figure(chart) for chart in charts.values()]
    drawn = figures[0]
    if len(figures) == 1:
        return drawn
    shown = [k for k, each in enumerate(figures) for _ in each["data"]]
    drawn["data"] = [trace for each in figures for trace in each["data"]]
    for trace, k in zip(drawn["data"], shown, strict=True):
        trace["visible"] = k == 0
    choices = [
        {"label": _text(label), "method": "update", "args": [{"visible": [k == chosen for k in shown]}]}
        for chosen, label in enumerate(charts)
    ]
    layout = drawn["layout"]
    layout |= {"updatemenus": [_buttons(choices)], "margin": layout["margin"] | {"t": 60}}
    if layout["showlegend"]:
        layout |= {"legend": layout["legend"] | {"y": -0.2, "yanchor": "top"}, "height": 460}
    return drawn


def _buttons(choices: Sequence[Mapping[str, object]]) -> PlainValues:
    """Return a row of buttons above the chart."""
    return {
        "type": "buttons", "direction": "right", "buttons": choices,
        "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom",
        "bgcolor": "#f4f5f7", "bordercolor": "#dfe3e8", "font": {"size": 12 if len(choices) < 3 else 11},
    }  # fmt: skip


def figure_over_training(charts: Mapping[int, Chart]) -> PlainValues:
    """Draw the last of several charts, by training step, with a slider that moves its points to where they are in the
    others.
    """
    drawn = figure(charts[max(charts)])
    moving = [k for k, trace in enumerate(drawn["data"]) if trace.get("meta") == "moves"]
    drawn["frames"] = [
        {
            "name": str(step),
            "traces": moving,
            "data": [
                {"type": "scatter", "x": _short(mark.xy[:, 0]), "y": _short(mark.xy[:, 1])}
                for panel in chart.panels
                for mark in panel.marks
                if isinstance(mark, Points) and mark.moves
            ],
        }
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
    drawn["layout"] |= {"sliders": [slider], "height": drawn["layout"]["height"] + 60}
    return drawn


def _share(place: int, places: int, gap: float) -> list[float]:
    """Return the ends of a place among several of equal size with gaps between them, as shares of the whole."""
    size = (1 - gap * (places - 1)) / places
    return [place * (size + gap), place * (size + gap) + size]


def _traces(mark: Line | Points | Cells, panel: Panel) -> list[PlainValues]:
    if isinstance(mark, Line):
        return _line(mark, panel)
    if isinstance(mark, Cells):
        return [_cells(mark)]
    return [
        {
            "type": "scatter",
            "x": _short(mark.xy[:, 0]),
            "y": _short(mark.xy[:, 1]),
            "mode": "markers",
            "name": _text(mark.name),
            "showlegend": False,
            "text": list(mark.hover),
            "hoverinfo": "text" if mark.hover else "skip",
            "marker": {"color": mark.color, "size": mark.size, "opacity": mark.alpha, "line": {"width": 0}},
            "meta": "moves" if mark.moves else "",
        }
    ]


def _line(mark: Line, panel: Panel) -> list[PlainValues]:
    traces: list[PlainValues] = []
    x = _numbers(positive(mark.x) if panel.log_x else mark.x, digits=9)  # training steps are whole
    if mark.lower is not None and mark.upper is not None and np.isfinite(mark.y).all():
        lower = np.maximum(mark.lower, np.abs(mark.y) * 1e-2) if panel.log else mark.lower
        traces.append(
            {
                "type": "scatter",
                "x": x + x[::-1],
                "y": _numbers(np.concatenate([mark.upper, lower[::-1]])),
                "fill": "toself",
                "fillcolor": f"rgba({','.join(map(str, rgb(mark.color)))},0.2)",
                "mode": "lines",  # plotly adds markers where there are few points
                "line": {"width": 0},
                "showlegend": False,
                "legendgroup": mark.name,
                "hoverinfo": "skip",
            }
        )
    bars = {} if mark.spread is None else {"error_y": {"array": _numbers(mark.spread), "thickness": 1, "width": 0}}
    traces.append(
        {
            "type": "scatter",
            "x": x,
            "y": _numbers(positive(mark.y) if panel.log else mark.y),
            "mode": "lines+markers" if mark.markers else "lines",
            "name": _text(mark.name),
            "legendgroup": mark.name,
            "showlegend": bool(mark.name),
            "line": {"color": mark.color, "dash": mark.dash, "width": mark.width},
            "hovertemplate": f"{_text(mark.hover or mark.name)}<br>%{{x:,.4~f}}: %{{y:.4g}}<extra></extra>",
            **bars,
        }
    )
    return traces


def _cells(mark: Cells) -> PlainValues:
    colors = (DIVERGING if mark.high_is_good else DIVERGING[::-1]) if mark.diverging else STEP_COLORS
    return {
        "type": "heatmap",
        "x": list(mark.x),
        "y": list(mark.y),
        "z": [_numbers(row) for row in mark.values],
        "zmin": mark.low,
        "zmax": mark.high,
        "colorscale": _scale(colors),
        "colorbar": {
            "title": {"text": _text(mark.unit), "side": "right", "font": {"size": 12}},
            "thickness": 10,
            "outlinewidth": 0,
        },
        "showlegend": False,
        "hovertemplate": "training step %{x}<br>log-SNR %{y}<br>%{z:.3g}<extra></extra>",
    }


def _axes(panel: Panel, titles: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    looks = {"gridcolor": _GRID, "zeroline": False, "linecolor": _FRAME}
    x = (
        looks
        | ({"range": panel.x_range} if panel.x_range else {})
        | ({"autorange": "reversed"} if panel.falling else {})
    )
    y = looks | ({"range": panel.y_range} if panel.y_range else {})
    if any(isinstance(mark, Cells) for mark in panel.marks):
        x |= {"type": "category"}
        y |= {"type": "category", "nticks": 12}
    if titles:
        x |= {"title": {"text": _text(panel.x), "font": {"size": 12.5}}}
        y |= {"title": {"text": _text(panel.y), "font": {"size": 12.5}}, "exponentformat": "power"}
    places = np.concatenate([mark.x for mark in panel.marks if isinstance(mark, Line)] or [np.empty(0)])
    if places.size and np.ptp(places) < 8 and np.array_equal(places, np.round(places)):
        x |= {"dtick": 1}
    if panel.log_x:
        x |= {"type": "log", "tickvals": [2**power for power in range(12)]}
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


def _step_colors(low: int, high: int) -> PlainValues:
    bar = {"title": {"text": "training<br>step", "font": {"size": 12}}, "thickness": 10, "len": 0.8, "outlinewidth": 0}
    marker = {"color": [low], "cmin": low, "cmax": max(high, low + 1), "colorscale": _scale(STEP_COLORS)}
    return {
        "type": "scatter", "x": [None], "y": [None], "mode": "markers", "showlegend": False, "hoverinfo": "skip",
        "marker": {**marker, "showscale": True, "colorbar": bar},
    }  # fmt: skip


def _scale(colors: Sequence[str]) -> list[list[Any]]:
    return [[i / (len(colors) - 1), color] for i, color in enumerate(colors)]


def _numbers(values: np.ndarray, digits: int = 6) -> list[float | None]:
    """Return numbers to some digits, more than a screen shows, and gaps where they are not finite."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in np.asarray(values, float)]


def _short(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 3) if np.isfinite(value) else None for value in values]


def _text(text: str) -> str:
    """Text as text: plotly would take some markup, though no script, from it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")
