"""What sampling does, step by step: KL, its ratio to the ideal, distance from real latents, variance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.layout import curves_by_step, finish, gaps
from ldmprobe.tracking.style import FORWARD, IDEAL, step_colour


def kl_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """KL per denoiser pass, coloured by training step, beside the ideal and the forward process."""
    figure = go.Figure()
    curves_by_step(figure, records, "step_kl", interval=True)
    for name, colour, dash, label in (
        ("step_kl_forward", FORWARD, "dot", "forward process"),
        ("step_kl_ideal", IDEAL, "dash", "ideal: perfect denoiser"),
    ):
        if name in records[-1].curves:
            curve = records[-1].curves[name]
            figure.add_trace(
                go.Scatter(
                    x=curve.timestep,
                    y=gaps(curve.value),
                    name=label,
                    line={"color": colour, "dash": dash, "width": 2.2},
                )
            )
    return finish(figure, "timestep (sampling runs left to right)", "nats per dimension", log_y=True, reverse_x=True)


def ratio_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """The same curves divided by the ideal: 1 for a perfect denoiser of Gaussian data, whatever the steps."""
    figure = go.Figure()
    figure.add_hline(y=1, line={"color": IDEAL, "dash": "dash", "width": 2})
    curves_by_step(figure, records, "step_kl", divide_by="step_kl_ideal")
    return finish(figure, "timestep (sampling runs left to right)", "KL ÷ ideal KL", log_y=True, reverse_x=True)


def gap_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """Distance of the samples from real latents at the same level, beside what a perfect denoiser would leave."""
    figure = go.Figure()
    curves_by_step(figure, records, "marginal_gap", interval=True)
    ideal = records[-1].curves["marginal_gap_ideal"]
    line = {"color": IDEAL, "dash": "dash", "width": 2.2}
    figure.add_trace(
        go.Scatter(x=ideal.timestep, y=gaps(ideal.value), name="ideal: the steps' length alone", line=line)
    )
    return finish(figure, "timestep (sampling runs left to right)", "nats per dimension", log_y=True, reverse_x=True)


def excess_chart(records: Sequence[ProbeRecord]) -> go.Figure:
    """Error of single steps from true latents beyond the best linear denoiser's, coloured by training step; 0 is that denoiser."""
    figure = go.Figure()
    figure.add_hline(y=0, line={"color": IDEAL, "dash": "dash", "width": 2})
    curves_by_step(figure, records, "one_step_excess", interval=True, over_log_snr=True)
    figure = finish(figure, "log-SNR (noisy to clean)", "squared error per dimension, above linear")
    last = records[-1].curves["one_step_excess"]
    # Untrained networks are off by far more, and would press what matters flat.
    reach = 1.3 * float(np.nanmax(np.abs(last.value), initial=1e-6))
    return figure.update_yaxes(range=[-reach, reach], exponentformat="power")


def variance_chart(record: ProbeRecord) -> go.Figure:
    """The latest probe's sample variance ÷ real variance, per eigen-band, each beside that of a perfect denoiser (dashed)."""
    figure = go.Figure()
    bands = sorted(name for name in record.curves if name.startswith("variance_ratio/band"))
    for k, name in enumerate(bands):
        curve = record.curves[name]
        label = "largest" if k == 0 else "smallest" if k == len(bands) - 1 else ""
        colour = step_colour(k / max(len(bands) - 1, 1))
        name = f"band {k}" + (f" ({label} variance)" if label else "")
        figure.add_trace(
            go.Scatter(x=curve.timestep, y=gaps(curve.value), name=name, line={"color": colour, "width": 2})
        )
        ideal = record.curves.get(f"variance_ratio_ideal/band{k}")  # records of an older ldmprobe have none
        if ideal is not None:
            dashed = {"color": colour, "width": 1.6, "dash": "dash"}
            legend = {"name": "ideal: perfect denoiser", "legendgroup": "ideal", "showlegend": k == 0}
            figure.add_trace(go.Scatter(x=ideal.timestep, y=gaps(ideal.value), line=dashed, **legend))
    figure = finish(
        figure, "timestep (sampling runs left to right)", "variance of samples ÷ real", log_y=True, reverse_x=True
    )
    figure.update_yaxes(dtick="D2", exponentformat="none")  # it spans less than a decade or two
    return figure
