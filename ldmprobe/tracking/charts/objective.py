"""What the optimiser sees of the noise levels: density, weight, and their product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.layout import finish, gaps, some_curves, step_colour_bar
from ldmprobe.tracking.style import ACCENT, IDEAL, step_colour

_PANELS = {
    "timestep_density": "p: share of draws per log-SNR",
    "loss_weight": "w: weight on the squared ε-error",
    "training_emphasis": "w·p: share of all weight per log-SNR",
}


def objective_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """p, w and w·p over log-SNR side by side, coloured by training step where they changed; beside w·p the even one of the variational bound."""
    records = some_curves(records)
    figure = make_subplots(rows=1, cols=len(_PANELS), subplot_titles=list(_PANELS.values()), horizontal_spacing=0.07)
    for column, metric in enumerate(_PANELS, start=1):
        for i, record in enumerate(records):
            curve = record.curves[metric]
            colour = step_colour(i / (len(records) - 1)) if len(records) > 1 else ACCENT
            figure.add_trace(
                go.Scatter(
                    x=curve.log_snr,
                    y=gaps(curve.value),
                    mode="lines",
                    showlegend=False,
                    line={"color": colour, "width": 2.4 if i == len(records) - 1 else 1.5},
                    hovertemplate=f"training step {record.step:,}<br>log-SNR %{{x:.2f}}<br>%{{y:.3g}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    even = float(np.mean(records[-1].curves["training_emphasis"].value))  # of bins of one width
    figure.add_hline(y=even, line={"color": IDEAL, "dash": "dash", "width": 2}, row=1, col=len(_PANELS))
    if len(records) > 1:
        step_colour_bar(figure, records[0].step, records[-1].step, "training<br>step")
    figure = finish(figure, "log-SNR (noisy to clean)", "", log_y=True)
    for column, metric in enumerate(_PANELS, start=1):
        values = np.concatenate([record.curves[metric].value for record in records])
        figure.update_yaxes(range=_at_least_a_decade(values), row=1, col=column)
    figure.update_annotations(font={"size": 13})
    return figure.update_layout(margin={"t": 40})


def _at_least_a_decade(values: np.ndarray) -> list[float]:
    """The range of a logarithmic axis; a constant's rounding is not to fill it."""
    low, high = np.log10([values[values > 0].min(), values[values > 0].max()])
    margin = max(0.05 * (high - low), (1 - (high - low)) / 2)
    return [low - margin, high + margin]
