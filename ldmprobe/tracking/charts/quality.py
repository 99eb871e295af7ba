"""Quality of samples over training: FID and KID."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.layout import finish
from ldmprobe.tracking.style import ACCENT, IDEAL


def fid_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """FID over training; on a logarithmic axis where it falls to a tenth."""
    fid = np.array([record.scalars["fid"] for record in records])
    known = fid[np.isfinite(fid)]
    log_y = bool(known.size and 0 < 10 * known.min() < known.max())
    figure = finish(go.Figure(_over_training(records, "fid")), "training step", "FID, lower is better", log_y=log_y)
    if log_y:  # plotly's own marks leave out the powers of ten
        marks = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
        figure.update_yaxes(dtick=None, tickvals=marks, ticktext=[f"{mark:g}" for mark in marks])
    else:
        figure.update_yaxes(rangemode="tozero")
    return figure


def kid_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """KID over training, ± its standard deviation over subsets; 0 is no difference."""
    figure = go.Figure(_over_training(records, "kid"))
    deviation = [record.scalars["kid_std"] for record in records]
    figure.update_traces(error_y={"array": deviation, "thickness": 1, "width": 0, "color": ACCENT})
    figure.add_hline(y=0, line={"color": IDEAL, "dash": "dash", "width": 2})
    return finish(figure, "training step", "KID, lower is better")


def _over_training(records: Sequence[ProbeRecord], metric: str) -> go.Scatter:
    return go.Scatter(
        x=[record.step for record in records],
        y=[record.scalars[metric] for record in records],
        mode="lines+markers",
        showlegend=False,
        line={"color": ACCENT, "width": 2},
        hovertemplate="training step %{x:,}<br>%{y:.4g}<extra></extra>",
    )
