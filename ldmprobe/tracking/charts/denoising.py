"""What each noise level has learnt: skill, residual, nats, loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.layout import curves_by_step, finish, gaps, step_colour_bar
from ldmprobe.tracking.style import IDEAL, STEP_COLOURS, WARNING, step_colour


def skill_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """Denoising skill over log-SNR, coloured by training step; 0 is the best linear denoiser."""
    figure = _beside_ideal(records, "denoising_skill", 0, "skill: 1 − MSE ÷ linear optimum")
    lowest = float(np.nanmin(records[-1].curves["denoising_skill"].value, initial=0))
    figure.update_yaxes(range=[max(min(lowest * 1.15, -0.6), -4.0), 1.02])
    return figure


def residual_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """Calibration residual over log-SNR, coloured by training step; 0 is calibrated."""
    figure = _beside_ideal(records, "calibration_residual", 0, "R: recoverable share of the loss")
    last = records[-1].curves["calibration_residual"]
    top = float(np.nanmax(last.upper if last.upper is not None else last.value, initial=0))
    figure.update_yaxes(range=[-0.05, min(max(1.3 * top, 0.2), 1.02)])
    return figure


def gain_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """Prediction gain over log-SNR, coloured by training step; 1 is calibrated."""
    figure = _beside_ideal(records, "prediction_gain", 1, "gain: E[ε·ε̂] ÷ E[ε̂²]")
    last = records[-1].curves["prediction_gain"].value
    reach = min(max(1.15 * float(np.nanmax(np.abs(last - 1), initial=0)), 0.1), 1.0)
    figure.update_yaxes(range=[1 - reach, 1 + reach])
    return figure


def offset_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """Mean of the error by channel over log-SNR, coloured by training step, and what it reads of a calibrated denoiser."""
    figure = go.Figure()
    curves_by_step(figure, records, "prediction_offset", over_log_snr=True)
    last = records[-1].curves
    floor = last.get("prediction_offset_floor")  # records of an older ldmprobe have none
    if floor is not None:
        figure.add_trace(
            go.Scatter(
                x=floor.log_snr,
                y=gaps(floor.value),
                name="of a calibrated denoiser, by chance",
                line={"color": IDEAL, "dash": "dash", "width": 2.2},
            )
        )
    figure = finish(figure, "log-SNR (noisy to clean)", "mean error, in units of the noise", log_y=True)
    return figure.update_yaxes(dtick="D2", exponentformat="none")  # it spans a decade or two


def nats_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """The latest record in nats per level: gained over the linear optimum, still recoverable, and gained since the last probe."""
    figure = go.Figure()
    last = records[-1]
    for metric, name, colour in (
        ("denoising_nats", "gained over a linear denoiser", STEP_COLOURS[3]),
        ("calibration_nats", "still recoverable, at least", WARNING),
        ("denoising_progress", "gained since the last probe", "#d4790e"),
    ):
        if metric in last.curves:
            curve = last.curves[metric]
            error = None
            if curve.lower is not None and curve.upper is not None:
                error = {
                    "type": "data",
                    "array": (curve.upper - curve.lower) / 2,
                    "thickness": 1,
                    "width": 0,
                    "color": "#777",
                }
            figure.add_trace(
                go.Bar(x=np.round(curve.log_snr, 2), y=curve.value, name=name, marker={"color": colour}, error_y=error)
            )
    figure = finish(figure, "log-SNR (noisy to clean)", "nats per level")
    figure.update_layout(barmode="group", bargap=0.25)
    return figure


def loss_chart(denoising: Sequence[ProbeRecord], training: Sequence[ProbeRecord]) -> go.Figure:
    """Held-out error by noise level, coloured by training step; the linear optimum; and the latest training error by band."""
    figure = go.Figure()
    if denoising:
        curves_by_step(figure, denoising, "denoising_mse", over_log_snr=True)
        optimum = denoising[-1].curves["denoising_mmse"]
        figure.add_trace(
            go.Scatter(
                x=optimum.log_snr,
                y=optimum.value,
                mode="lines",
                name="linear optimum",
                line={"color": IDEAL, "dash": "dash", "width": 2.2},
            )
        )
    if training:
        latest = training[-1].curves["training_mse"]
        figure.add_trace(
            go.Scatter(
                x=latest.log_snr,
                y=latest.value,
                mode="markers",
                name=f"training, last of step {training[-1].step:,}",
                marker={"color": "#d4790e", "size": 9, "symbol": "diamond-open", "line": {"width": 2}},
            )
        )
    return finish(figure, "log-SNR (noisy to clean)", "squared ε-error per dimension", log_y=True)


def history_chart(denoising: Sequence[ProbeRecord], training: Sequence[ProbeRecord]) -> go.Figure:
    """Error over training, one line per noise level: held-out (lines) and training (dotted), noisy to clean by colour."""
    figure = go.Figure()
    for records, metric, dash, name in (
        (denoising, "denoising_mse", "solid", "held-out"),
        (training, "training_mse", "dot", "training"),
    ):
        if not records:
            continue
        levels = records[-1].curves[metric].log_snr
        chosen = levels if metric == "training_mse" else levels[:: max(1, len(levels) // 8)]
        for level in chosen:
            xs, ys = [], []
            for record in records:
                curve = record.curves[metric]
                at = np.flatnonzero(np.isclose(curve.log_snr, level))
                if at.size:
                    xs.append(record.step)
                    ys.append(curve.value[at[0]])
            place = float(np.clip((level + 6) / 13, 0, 1))
            figure.add_trace(
                go.Scatter(
                    x=xs,
                    y=ys,
                    name=name,
                    legendgroup=name,
                    showlegend=bool(level == chosen[0]),
                    line={"color": step_colour(place), "dash": dash, "width": 1.8},
                    hovertemplate=f"{name}, log-SNR {level:.1f}<br>step %{{x:,}}: %{{y:.3g}}<extra></extra>",
                )
            )
    step_colour_bar(figure, -6, 7, "log-SNR")
    return finish(figure, "training step", "squared ε-error per dimension", log_y=True)


def _beside_ideal(records: Sequence[ProbeRecord], metric: str, ideal: float, title: str) -> go.Figure:
    """A metric over log-SNR, coloured by training step, and its ideal, the same at every level."""
    figure = go.Figure()
    figure.add_hline(y=ideal, line={"color": IDEAL, "dash": "dash", "width": 2})
    curves_by_step(figure, records, metric, interval=True, over_log_snr=True)
    return finish(figure, "log-SNR (noisy to clean)", title)
