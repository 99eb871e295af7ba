"""What all charts share: curves coloured by training step, axes, gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.tracking.history import thinned
from ldmprobe.tracking.style import STEP_COLOURS, step_colour

MOST_MARKS = 6  # on a logarithmic axis
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
STEP_SCALE = [[i / (len(STEP_COLOURS) - 1), colour] for i, colour in enumerate(STEP_COLOURS)]
_GRID = "#eceef1"


CURVES = 24  # of one metric in a chart, at most


def some_curves(records: Sequence[ProbeRecord]) -> list[ProbeRecord]:
    """As many records as one chart tells apart: evenly spaced, the first and the last among them."""
    return thinned(records, CURVES)


def curves_by_step(
    figure: go.Figure,
    records: Sequence[ProbeRecord],
    metric: str,
    interval: bool = False,
    over_log_snr: bool = False,
    divide_by: str | None = None,
) -> None:
    """A curve per record, coloured by training step; of many records those that ``some_curves`` chooses."""
    steps = [record.step for record in records]
    records = some_curves(records)
    for i, record in enumerate(records):
        curve = record.curves[metric]
        colour = step_colour(i / max(len(records) - 1, 1))
        x = curve.log_snr if over_log_snr else curve.timestep
        value = curve.value if divide_by is None else curve.value / record.curves[divide_by].value
        if interval and i == len(records) - 1 and curve.lower is not None and curve.upper is not None:
            band(figure, x, curve, colour, positive=not over_log_snr)
        figure.add_trace(
            go.Scatter(
                x=x,
                y=value if over_log_snr else gaps(value),
                mode="lines",
                name=f"step {record.step:,}",
                showlegend=False,
                line={"color": colour, "width": 2.4 if i == len(records) - 1 else 1.5},
                customdata=np.stack([curve.timestep, curve.log_snr], axis=1),
                hovertemplate=f"training step {record.step:,}<br>t = %{{customdata[0]}}, log-SNR %{{customdata[1]:.2f}}<br>%{{y:.3g}}"
                "<extra></extra>",
            )
        )
    step_colour_bar(figure, min(steps), max(steps), "training<br>step")


def band(figure: go.Figure, x: np.ndarray, curve: Curve, colour: str, positive: bool) -> None:
    """The 95 % interval of a curve, shaded; ``positive`` for a logarithmic axis."""
    assert curve.lower is not None
    assert curve.upper is not None
    lower = np.maximum(curve.lower, np.abs(curve.value) * 1e-2) if positive else curve.lower
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    figure.add_trace(
        go.Scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([curve.upper, lower[::-1]]),
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.22)",
            mode="lines",  # plotly adds markers where there are few points
            line={"width": 0},
            name="95 % interval, last",
            hoverinfo="skip",
        )
    )


def step_colour_bar(figure: go.Figure, low: float, high: float, title: str) -> None:
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            showlegend=False,
            hoverinfo="skip",
            marker={
                "color": [low],
                "cmin": low,
                "cmax": high if high > low else low + 1,
                "colorscale": STEP_SCALE,
                "showscale": True,
                "colorbar": {
                    "title": {"text": title, "font": {"size": 12}},
                    "thickness": 10,
                    "len": 0.8,
                    "outlinewidth": 0,
                },
            },
        )
    )


def finish(figure: go.Figure, x: str, y: str, log_y: bool = False, reverse_x: bool = False) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        font={"family": _FONT, "size": 13, "color": "#2b2f36"},
        height=420,
        margin={"l": 64, "r": 16, "t": 16, "b": 52},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        hoverlabel={"bgcolor": "white"},
    )
    figure.update_xaxes(gridcolor=_GRID, zeroline=False, linecolor="#c9ced6")
    figure.update_yaxes(gridcolor=_GRID, zeroline=False, linecolor="#c9ced6")
    if x:
        figure.update_xaxes(title={"text": x, "font": {"size": 12.5}}, autorange="reversed" if reverse_x else None)
        figure.update_yaxes(title={"text": y, "font": {"size": 12.5}})
    if log_y:
        figure.update_yaxes(type="log", exponentformat="power", dtick=_decades_per_mark(figure))
    return figure


def _decades_per_mark(figure: go.Figure) -> int:
    """As many as make six marks at most of what is drawn."""
    drawn = [np.asarray(trace.y, dtype=float) for trace in figure.data if getattr(trace, "y", None) is not None]
    values = np.concatenate([np.zeros(0), *drawn])
    values = values[np.isfinite(values) & (values > 0)]
    decades = float(np.ptp(np.log10(values))) if values.size else 0.0
    return max(1, int(np.ceil((decades + 1) / MOST_MARKS)))


def buttons(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of buttons above the chart."""
    return {
        "type": "buttons",
        "direction": "right",
        "buttons": choices,
        "x": 0,
        "xanchor": "left",
        "y": 1.04,
        "yanchor": "bottom",
        "bgcolor": "#f4f5f7",
        "bordercolor": "#dfe3e8",
        "font": {"size": 12},
    }


def gaps(values: np.ndarray) -> list[float | None]:
    """For a logarithmic axis: what is not positive becomes a gap."""
    return [float(v) if np.isfinite(v) and v > 0 else None for v in values]


def short(values: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in values]
