"""Interactive charts (plotly) of the report page, each a function of records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ldmprobe.probing.record import Curve, ProbeRecord
from ldmprobe.tracking.figures import level_names
from ldmprobe.tracking.style import ACCENT, FORWARD, IDEAL, REAL, STEP_COLOURS, WARNING, class_colour, step_colour

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
_STEP_SCALE = [[i / (len(STEP_COLOURS) - 1), colour] for i, colour in enumerate(STEP_COLOURS)]
_GRID = "#eceef1"


def kl_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """KL per denoiser pass, coloured by training step, beside the ideal and the forward process."""
    figure = go.Figure()
    _curves_by_step(figure, records, "step_kl", interval=True)
    for name, colour, dash, label in (
        ("step_kl_forward", FORWARD, "dot", "forward process"),
        ("step_kl_ideal", IDEAL, "dash", "ideal: perfect denoiser"),
    ):
        if name in records[-1].curves:
            curve = records[-1].curves[name]
            figure.add_trace(
                go.Scatter(
                    x=curve.timestep,
                    y=_gap(curve.value),
                    name=label,
                    line={"color": colour, "dash": dash, "width": 2.2},
                )
            )
    return _finish(figure, "timestep (sampling runs left to right)", "nats per dimension", log_y=True, reverse_x=True)


def ratio_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """The same curves divided by the ideal: 1 for a perfect denoiser of Gaussian data, whatever the steps."""
    figure = go.Figure()
    figure.add_hline(y=1, line={"color": IDEAL, "dash": "dash", "width": 2})
    _curves_by_step(figure, records, "step_kl", divide_by="step_kl_ideal")
    return _finish(figure, "timestep (sampling runs left to right)", "KL ÷ ideal KL", log_y=True, reverse_x=True)


def gap_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """Distance of the samples from real latents at the same level, beside what a perfect denoiser would leave."""
    figure = go.Figure()
    _curves_by_step(figure, records, "marginal_gap", interval=True)
    ideal = records[-1].curves["marginal_gap_ideal"]
    line = {"color": IDEAL, "dash": "dash", "width": 2.2}
    figure.add_trace(
        go.Scatter(x=ideal.timestep, y=_gap(ideal.value), name="ideal: the steps' length alone", line=line)
    )
    return _finish(figure, "timestep (sampling runs left to right)", "nats per dimension", log_y=True, reverse_x=True)


def variance_chart(record: ProbeRecord) -> go.Figure:
    """The latest probe's sample variance ÷ real variance, per eigen-band."""
    figure = go.Figure()
    figure.add_hline(y=1, line={"color": IDEAL, "dash": "dash", "width": 2})
    bands = sorted(name for name in record.curves if name.startswith("variance_ratio/band"))
    for k, name in enumerate(bands):
        curve = record.curves[name]
        label = "largest" if k == 0 else "smallest" if k == len(bands) - 1 else ""
        colour = step_colour(k / max(len(bands) - 1, 1))
        name = f"band {k}" + (f" ({label} variance)" if label else "")
        figure.add_trace(
            go.Scatter(x=curve.timestep, y=_gap(curve.value), name=name, line={"color": colour, "width": 2})
        )
    return _finish(
        figure, "timestep (sampling runs left to right)", "variance of samples ÷ real", log_y=True, reverse_x=True
    )


def pca_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """PCA scatters at several noise levels, with a slider over training."""
    first = records[-1]
    scatters, real = first.scatters["pca"], first.scatters.get("pca_real")
    columns = min(3, len(scatters))
    rows = -(-len(scatters) // columns)
    titles = level_names(scatters)
    figure = make_subplots(
        rows, columns, subplot_titles=titles, horizontal_spacing=0.06, vertical_spacing=0.14 if rows > 1 else 0.1
    )
    labels = first.provenance.get("sample_labels")
    colours = [class_colour(label) for label in labels] if labels else ACCENT
    hover = [f"sample {i}, class {label}" for i, label in enumerate(labels)] if labels else None
    places = [(i // columns + 1, i % columns + 1) for i in range(len(scatters))]
    for i, place in enumerate(places):
        if real:
            figure.add_trace(_points(real[i].xy, REAL, 4, 0.55, "real latents"), *place)
    moving = []
    for i, place in enumerate(places):
        moving.append(len(figure.data))
        figure.add_trace(_points(scatters[i].xy, colours, 5.5, 0.9, "samples", hover), *place)
        # Early samples may lie far outside; the frame is that of real latents and the last samples.
        framed = np.concatenate([scatters[i].xy, *([real[i].xy] if real else [])])
        limit = float(1.1 * np.nanmax(np.abs(framed), initial=0.1))
        figure.update_xaxes(range=[-limit, limit], row=place[0], col=place[1])
        figure.update_yaxes(range=[-limit, limit], row=place[0], col=place[1])
    figure.frames = [
        go.Frame(
            name=str(record.step),
            traces=moving,
            data=[go.Scatter(x=_short(s.xy[:, 0]), y=_short(s.xy[:, 1])) for s in record.scatters["pca"]],
        )
        for record in records
    ]
    figure = _finish(figure, "", "")
    figure.update_layout(
        height=330 * rows + 110,
        showlegend=False,
        margin={"t": 40, "b": 20},
        sliders=[_slider([r.step for r in records])],
    )
    figure.update_annotations(font={"size": 12.5, "color": "#4a4f57"})
    return figure


def heatmap_chart(ddim: Sequence[ProbeRecord], denoising: Sequence[ProbeRecord]) -> go.Figure:
    """Noise level (up) over training step (across), for several metrics in turn."""
    options: list[tuple[str, go.Heatmap]] = []
    if ddim:
        kl = np.stack([record.curves["step_kl"].value for record in ddim], axis=1)
        timestep = ddim[-1].curves["step_kl"].timestep
        if "step_kl_ideal" in ddim[-1].curves:
            ideal = np.stack([record.curves["step_kl_ideal"].value for record in ddim], axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.log10(np.where(kl > 0, kl, np.nan) / ideal)
            options.append(
                ("KL ÷ ideal", _heatmap(ddim, timestep, ratio, "log10<br>KL ÷ ideal", 1.0, high_is_bad=True))
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            options.append(
                ("KL per pass", _heatmap(ddim, timestep, np.log10(np.where(kl > 0, kl, np.nan)), "log10<br>nats/dim"))
            )
    if denoising:
        for metric, label, unit, limit in (
            ("calibration_residual", "Residual R", "R", 0.3),
            ("denoising_skill", "Denoising skill", "skill", 1.0),
            ("denoising_nats", "Gain in nats", "nats", None),
        ):
            values = np.stack([record.curves[metric].value for record in denoising], axis=1)
            timestep = denoising[-1].curves[metric].timestep
            limit = limit or float(np.nanpercentile(np.abs(values), 90))
            options.append(
                (label, _heatmap(denoising, timestep, values, unit, limit, metric == "calibration_residual"))
            )
    figure = go.Figure([trace for _, trace in options])
    for i, trace in enumerate(figure.data):
        trace.visible = i == 0
    buttons = [
        {"label": label, "method": "update", "args": [{"visible": [j == i for j in range(len(options))]}]}
        for i, (label, _) in enumerate(options)
    ]
    figure = _finish(figure, "training step", "timestep (sampling runs up)")
    figure.update_layout(
        updatemenus=[_buttons(buttons)],
        margin={"t": 60},
        xaxis={"type": "category"},
        yaxis={"type": "category", "nticks": 12},
    )
    return figure


def skill_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """Denoising skill over log-SNR, coloured by training step; 0 is the best linear denoiser."""
    figure = go.Figure()
    figure.add_hline(y=0, line={"color": IDEAL, "dash": "dash", "width": 2})
    _curves_by_step(figure, records, "denoising_skill", interval=True, over_log_snr=True)
    figure = _finish(figure, "log-SNR (noisy to clean)", "skill: 1 − MSE ÷ linear optimum")
    lowest = min(float(np.nanmin(record.curves["denoising_skill"].value)) for record in records[-1:])
    figure.update_yaxes(range=[max(min(lowest * 1.15, -0.6), -4.0), 1.02])
    return figure


def residual_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """Calibration residual over log-SNR, coloured by training step; 0 is calibrated."""
    figure = go.Figure()
    figure.add_hline(y=0, line={"color": IDEAL, "dash": "dash", "width": 2})
    _curves_by_step(figure, records, "calibration_residual", interval=True, over_log_snr=True)
    figure = _finish(figure, "log-SNR (noisy to clean)", "R: recoverable share of the loss")
    last = records[-1].curves["calibration_residual"]
    top = float(np.nanmax(last.upper if last.upper is not None else last.value))
    figure.update_yaxes(range=[-0.05, min(max(1.3 * top, 0.2), 1.02)])
    return figure


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
    figure = _finish(figure, "log-SNR (noisy to clean)", "nats per level")
    figure.update_layout(barmode="group", bargap=0.25)
    return figure


def loss_chart(denoising: Sequence[ProbeRecord], training: Sequence[ProbeRecord]) -> go.Figure:
    """Held-out error by noise level, coloured by training step; the linear optimum; and the latest training error by band."""
    figure = go.Figure()
    if denoising:
        _curves_by_step(figure, denoising, "denoising_mse", over_log_snr=True)
        optimum = denoising[-1].curves["denoising_mmse"]
        figure.add_trace(
            go.Scatter(
                x=optimum.log_snr,
                y=optimum.value,
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
    return _finish(figure, "log-SNR (noisy to clean)", "squared ε-error per dimension", log_y=True)


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
    _step_colour_bar(figure, -6, 7, "log-SNR")
    return _finish(figure, "training step", "squared ε-error per dimension", log_y=True)


# --- pieces ----------------------------------------------------------------------------------------------------------


def _curves_by_step(
    figure: go.Figure,
    records: Sequence[ProbeRecord],
    metric: str,
    interval: bool = False,
    over_log_snr: bool = False,
    divide_by: str | None = None,
) -> None:
    steps = [record.step for record in records]
    for i, record in enumerate(records):
        curve = record.curves[metric]
        colour = step_colour(i / max(len(records) - 1, 1))
        x = curve.log_snr if over_log_snr else curve.timestep
        value = curve.value if divide_by is None else curve.value / record.curves[divide_by].value
        if interval and i == len(records) - 1 and curve.lower is not None and curve.upper is not None:
            _band(figure, x, curve, colour, positive=not over_log_snr)
        figure.add_trace(
            go.Scatter(
                x=x,
                y=value if over_log_snr else _gap(value),
                mode="lines",
                name=f"step {record.step:,}",
                showlegend=False,
                line={"color": colour, "width": 2.4 if i == len(records) - 1 else 1.5},
                customdata=np.stack([curve.timestep, curve.log_snr], axis=1),
                hovertemplate=f"training step {record.step:,}<br>t = %{{customdata[0]}}, log-SNR %{{customdata[1]:.2f}}<br>%{{y:.3g}}"
                "<extra></extra>",
            )
        )
    _step_colour_bar(figure, min(steps), max(steps), "training<br>step")


def _band(figure: go.Figure, x: np.ndarray, curve: Curve, colour: str, positive: bool) -> None:
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
            line={"width": 0},
            name="95 % interval, last",
            hoverinfo="skip",
        )
    )


def _step_colour_bar(figure: go.Figure, low: float, high: float, title: str) -> None:
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
                "colorscale": _STEP_SCALE,
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


def _heatmap(
    records: Sequence[ProbeRecord],
    timestep: np.ndarray,
    values: np.ndarray,
    unit: str,
    diverging: float | None = None,
    high_is_bad: bool = False,
) -> go.Heatmap:
    scale: Any = _STEP_SCALE if diverging is None else "RdBu_r" if high_is_bad else "RdBu"
    limits = {"zmin": -diverging, "zmax": diverging} if diverging else {}
    return go.Heatmap(
        x=[f"{record.step:,}" for record in records],
        y=[str(t) for t in timestep],
        z=values,
        colorscale=scale,
        colorbar={"title": {"text": unit, "font": {"size": 12}}, "thickness": 10, "outlinewidth": 0},
        hovertemplate="training step %{x}<br>t = %{y}<br>%{z:.3g}<extra></extra>",
        **limits,
    )


def _points(
    xy: np.ndarray, colour: Any, size: float, opacity: float, name: str, hover: list[str] | None = None
) -> go.Scattergl:
    return go.Scatter(
        x=_short(xy[:, 0]),
        y=_short(xy[:, 1]),
        mode="markers",
        name=name,
        text=hover,
        hoverinfo="text" if hover else "skip",
        marker={"color": colour, "size": size, "opacity": opacity, "line": {"width": 0}},
    )


def _slider(steps: Sequence[int]) -> dict[str, Any]:
    return {
        "active": len(steps) - 1,
        "currentvalue": {"prefix": "training step ", "font": {"size": 13}},
        "pad": {"t": 36, "b": 6},
        "bgcolor": "#dfe3e8",
        "bordercolor": "#dfe3e8",
        "activebgcolor": ACCENT,
        "steps": [
            {
                "label": f"{step:,}",
                "method": "animate",
                "args": [
                    [str(step)],
                    {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 250}},
                ],
            }
            for step in steps
        ],
    }


def _buttons(buttons: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "buttons",
        "direction": "right",
        "buttons": buttons,
        "x": 0,
        "xanchor": "left",
        "y": 1.04,
        "yanchor": "bottom",
        "bgcolor": "#f4f5f7",
        "bordercolor": "#dfe3e8",
        "font": {"size": 12},
    }


def _finish(figure: go.Figure, x: str, y: str, log_y: bool = False, reverse_x: bool = False) -> go.Figure:
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
        figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    return figure


def _gap(values: np.ndarray) -> list[float | None]:
    """For a logarithmic axis: what is not positive becomes a gap."""
    return [float(v) if np.isfinite(v) and v > 0 else None for v in values]


def _short(values: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in values]
