"""Noise level by training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.layout import STEP_SCALE, buttons, finish


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
            finite = np.abs(values[np.isfinite(values)])
            limit = limit or float(np.percentile(finite, 90) if finite.size else 1.0)
            options.append(
                (label, _heatmap(denoising, timestep, values, unit, limit, metric == "calibration_residual"))
            )
    figure = go.Figure([trace for _, trace in options])
    for i, trace in enumerate(figure.data):
        trace.visible = i == 0
    choices = [
        {"label": label, "method": "update", "args": [{"visible": [j == i for j in range(len(options))]}]}
        for i, (label, _) in enumerate(options)
    ]
    figure = finish(figure, "training step", "timestep (sampling runs up)")
    figure.update_layout(
        updatemenus=[buttons(choices)],
        margin={"t": 60},
        xaxis={"type": "category"},
        yaxis={"type": "category", "nticks": 12},
    )
    return figure


def _heatmap(
    records: Sequence[ProbeRecord],
    timestep: np.ndarray,
    values: np.ndarray,
    unit: str,
    diverging: float | None = None,
    high_is_bad: bool = False,
) -> go.Heatmap:
    scale: Any = STEP_SCALE if diverging is None else "RdBu_r" if high_is_bad else "RdBu"
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
