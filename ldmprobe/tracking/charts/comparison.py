"""Runs over each other: a colour each, the same in every chart, with 95 % bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ldmprobe.analysis.comparison import ClusteredMean
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.tracking.charts.layout import band, buttons, finish, gaps
from ldmprobe.tracking.style import CLASS_COLOURS, IDEAL, class_colour

Records = Mapping[str, ProbeRecord]  # by run
_LOG_SNR = "log-SNR (noisy to clean)"
_SAMPLING = "timestep (sampling runs left to right)"


def skills_chart(moments: Mapping[str, Records]) -> go.Figure:
    """Denoising skill of each run; 0 is the best linear denoiser. ``moments``: when, in words, and the records then."""
    figure = _curves(moments, "denoising_skill", "skill: 1 − MSE ÷ linear optimum", level=0)
    lowest = min(_finite(curve.value).min(initial=0) for curve in _all(moments, "denoising_skill"))
    figure.update_yaxes(range=[max(min(1.15 * lowest, -0.6), -4.0), 1.02])
    return figure


def residuals_chart(moments: Mapping[str, Records]) -> go.Figure:
    """Calibration residual of each run; 0 is calibrated."""
    figure = _curves(moments, "calibration_residual", "R: recoverable share of the loss", level=0)
    highest = max(_finite(curve.value).max(initial=0) for curve in _all(moments, "calibration_residual"))
    figure.update_yaxes(range=[-0.05, min(max(1.3 * highest, 0.2), 1.02)])
    return figure


def level_nats_chart(moments: Mapping[str, Records]) -> go.Figure:
    """What each run gains over the linear denoiser, in nats per level."""
    return _curves(moments, "denoising_nats", "nats per level, over a linear denoiser", level=0)


def step_kls_chart(moments: Mapping[str, Records]) -> go.Figure:
    """KL per denoiser pass of each run, beside the ideal."""
    return _curves(moments, "step_kl", "nats per dimension", ideal=("step_kl_ideal", "ideal: perfect denoiser"))


def gaps_chart(moments: Mapping[str, Records]) -> go.Figure:
    """Distance of each run's samples from real latents, beside what a perfect denoiser would leave."""
    return _curves(
        moments, "marginal_gap", "nats per dimension", ideal=("marginal_gap_ideal", "ideal: the steps' length alone")
    )


def gains_chart(log_snr: np.ndarray, moments: Mapping[str, Mapping[str, ClusteredMean]]) -> go.Figure:
    """Paired gain over the first run, in nats per level. ``moments``: when, in words, and the gains (L,) of the other runs then."""
    figure = go.Figure()
    shown: list[int] = []
    figure.add_hline(y=0, line={"color": IDEAL, "dash": "dash", "width": 2})
    for k, gains in enumerate(moments.values()):
        for i, (label, gain) in enumerate(gains.items(), start=1):
            limits = (gain.value - gain.half_width, gain.value + gain.half_width)
            _run(figure, i, label, log_snr, Curve(log_snr, log_snr, gain.value, *limits))
        shown += [k] * (len(figure.data) - len(shown))
    return _finish(figure, list(moments), shown, _LOG_SNR, "nats per level; above 0 is better")


def bounds_chart(histories: Mapping[str, tuple[np.ndarray, ClusteredMean]]) -> go.Figure:
    """Held-out bound over training: steps (K,) and bound (K,) of each run. Dotted: the first run's last."""
    figure = go.Figure()
    known = np.concatenate([_finite(bound.value) for _, bound in histories.values()])
    spread = known.max() / known.min() if known.size and known.min() > 0 else 1.0
    log_y = bool(spread > 3)
    for i, (label, (steps, bound)) in enumerate(histories.items()):
        limits = (bound.value - bound.half_width, bound.value + bound.half_width)
        _run(figure, i, label, steps, Curve(steps, steps, bound.value, *limits), log_y, markers=True)
    target = next(iter(histories.values()))[1].value[-1]
    if np.isfinite(target):
        figure.add_hline(y=target, line={"color": class_colour(0), "dash": "dot", "width": 1.5})
    figure = _finish(figure, [], [], "training step", "nats, lower is better", log_y=log_y)
    if log_y:  # plotly's own marks leave out the powers of ten
        digits = (1, 2, 5) if spread > 30 else (1, 1.5, 2, 3, 5, 7)
        marks = [digit * 10.0**power for power in range(-3, 9) for digit in digits]
        figure.update_yaxes(dtick=None, tickvals=marks, ticktext=[f"{mark:,g}" for mark in marks])
    return figure


def shares_chart(names: Sequence[str], moments: Mapping[str, Mapping[str, Sequence[float]]]) -> go.Figure:
    """How each run's recoverable excess is spread over bands of log-SNR called ``names``. ``moments``: when, in words, and shares by run."""
    figure = go.Figure()
    shown: list[int] = []
    for k, shares in enumerate(moments.values()):
        for i, (label, values) in enumerate(shares.items()):
            figure.add_trace(
                go.Bar(
                    x=list(names),
                    y=values,
                    name=label,
                    marker={"color": class_colour(i)},
                    hovertemplate="%{fullData.name}<br>log-SNR %{x}: %{y:.0%}<extra></extra>",
                )
            )
        shown += [k] * len(shares)
    figure = _finish(figure, list(moments), shown, _LOG_SNR, "share of what is recoverable")
    figure.update_yaxes(tickformat=".0%")
    figure.update_layout(barmode="group", bargap=0.25)
    return figure


def _curves(
    moments: Mapping[str, Records],
    metric: str,
    y: str,
    level: float | None = None,
    ideal: tuple[str, str] | None = None,
) -> go.Figure:
    """Against log-SNR with a dashed ``level``, or in sampling order, logarithmic, with a dashed ``ideal`` curve."""
    figure, sampling = go.Figure(), level is None
    if level is not None:
        figure.add_hline(y=level, line={"color": IDEAL, "dash": "dash", "width": 2})
    shown: list[int] = []
    for k, records in enumerate(moments.values()):
        for i, (label, record) in enumerate(records.items()):
            curve = record.curves[metric]
            x = curve.timestep if sampling else curve.log_snr
            _run(figure, i, label, x, curve, log_y=sampling)
        first = next(iter(records.values()))
        if ideal is not None and ideal[0] in first.curves:
            curve = first.curves[ideal[0]]
            line = {"color": IDEAL, "dash": "dash", "width": 2.2}
            figure.add_trace(go.Scatter(x=curve.timestep, y=gaps(curve.value), name=ideal[1], line=line))
        shown += [k] * (len(figure.data) - len(shown))
    return _finish(
        figure, list(moments), shown, _SAMPLING if sampling else _LOG_SNR, y, log_y=sampling, reverse_x=sampling
    )


def _run(
    figure: go.Figure, i: int, label: str, x: np.ndarray, curve: Curve, log_y: bool = False, markers: bool = False
) -> None:
    """The ``i``-th run's curve over ``x``."""
    if curve.lower is not None and np.isfinite(curve.value).all():
        band(figure, x, curve, class_colour(i), positive=log_y)
        figure.data[-1].update(showlegend=False, legendgroup=label)
    figure.add_trace(
        go.Scatter(
            x=x,
            y=gaps(curve.value) if log_y else curve.value,
            mode="lines+markers" if markers else "lines",
            name=label,
            legendgroup=label,
            line={"color": class_colour(i), "width": 2.2, "dash": _dash(i)},
            hovertemplate="%{fullData.name}<br>%{x:,.2~f}: %{y:.3g}<extra></extra>",
        )
    )


def _finish(figure: go.Figure, names: list[str], shown: list[int], x: str, y: str, **axes: Any) -> go.Figure:
    """Axes, the legend below, and a button for each moment where there are several: trace k is shown at moment ``shown[k]``."""
    figure = finish(figure, x, y, **axes)
    legend_rows = -(-len({trace.name for trace in figure.data if trace.showlegend is not False}) // 3)
    figure.update_layout(legend={"y": -0.2, "yanchor": "top"}, margin={"t": 20}, height=400 + 24 * legend_rows)
    if len(names) > 1:
        for trace, moment in zip(figure.data, shown, strict=True):
            trace.visible = moment == 0
        choices = [
            {"label": name, "method": "update", "args": [{"visible": [moment == k for moment in shown]}]}
            for k, name in enumerate(names)
        ]
        figure.update_layout(updatemenus=[buttons(choices)], margin={"t": 56})
    return figure


def _dash(i: int) -> str:
    return ("solid", "dot", "dashdot")[i // len(CLASS_COLOURS) % 3]


def _all(moments: Mapping[str, Records], metric: str) -> list[Curve]:
    return [record.curves[metric] for records in moments.values() for record in records.values()]


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
