"""What finetuning took from the noise levels on the base model's data, and gave them on the new."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.layout import band, finish
from ldmprobe.tracking.style import IDEAL, STEP_COLOURS, WARNING

_KINDS = {"base": ("the base model's data", WARNING), "new": ("the new data", STEP_COLOURS[3])}
_LOG_SNR = "log-SNR (noisy to clean)"


def forgetting_chart(record: ProbeRecord) -> go.Figure:
    """Nats per level lost and gained since the base model, on both kinds of data."""
    figure = go.Figure()
    figure.add_hline(y=0, line={"color": IDEAL, "dash": "dash", "width": 2})
    for kind, (name, colour) in _KINDS.items():
        curve = record.curves[f"forgetting_nats/{kind}"]
        error = None
        if curve.lower is not None and curve.upper is not None:
            error = {"array": (curve.upper - curve.lower) / 2, "thickness": 1, "width": 0, "color": "#777"}
        figure.add_trace(
            go.Bar(
                x=np.round(curve.log_snr, 2),
                y=curve.value,
                name=f"on {name}",
                marker={"color": colour},
                error_y=error,
                hovertemplate=f"{name}<br>log-SNR %{{x}}: %{{y:+.3g}} nats<extra></extra>",
            )
        )
    figure = finish(figure, _LOG_SNR, "nats per level: below 0 lost, above gained")
    return figure.update_layout(barmode="group", bargap=0.25)


def forgetting_history_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """Nats of all levels together since the base model, over training, on both kinds of data."""
    figure = go.Figure()
    figure.add_hline(y=0, line={"color": IDEAL, "dash": "dash", "width": 2})
    for (name, colour), total, sign in zip(_KINDS.values(), ("forgotten_nats", "gained_nats"), (-1, 1), strict=True):
        figure.add_trace(
            go.Scatter(
                x=[record.step for record in records],
                y=[sign * record.scalars[total] for record in records],
                mode="lines+markers",
                name=f"on {name}",
                line={"color": colour, "width": 2.4},
                error_y={
                    "array": [record.scalars[f"{total}_half_width"] for record in records],
                    "thickness": 1,
                    "width": 0,
                },
                hovertemplate=f"{name}<br>training step %{{x:,}}: %{{y:+.4g}} nats<extra></extra>",
            )
        )
    return finish(figure, "training step", "nats over all levels: below 0 lost, above gained")


def before_and_after_chart(record: ProbeRecord, metric: str, title: str) -> go.Figure:
    """``forgetting_skill`` or ``forgetting_residual`` of the base model (dotted) and of this one (solid), on both kinds of data."""
    figure = go.Figure()
    figure.add_hline(y=0, line={"color": IDEAL, "width": 1})
    for kind, (name, colour) in _KINDS.items():
        before, after = record.curves[f"{metric}_before/{kind}"], record.curves[f"{metric}/{kind}"]
        if after.lower is not None and after.upper is not None:
            band(figure, after.log_snr, after, colour, positive=False)
            figure.data[-1].showlegend = False
        for curve, model, dash in ((before, "base model", "dot"), (after, "finetuned", "solid")):
            figure.add_trace(
                go.Scatter(
                    x=curve.log_snr,
                    y=curve.value,
                    mode="lines",
                    name=f"on {name}",
                    showlegend=curve is after,
                    line={"color": colour, "dash": dash, "width": 2.2},
                    hovertemplate=f"{model}, {name}<br>log-SNR %{{x:.2f}}: %{{y:.3g}}<extra></extra>",
                )
            )
    shown = np.concatenate(
        [record.curves[f"{metric}{when}/{kind}"].value for when in ("_before", "") for kind in _KINDS]
    )
    low, high = float(np.nanmin(shown, initial=0)), float(np.nanmax(shown, initial=0))
    margin = 0.08 * (high - low)
    figure = finish(figure, _LOG_SNR, title)
    # Far below the linear denoiser's a level weighs next to nothing, and would press all others flat.
    return figure.update_yaxes(range=[max(min(low - margin, -0.05), -2.0), min(high + margin, 1.02)])
