"""What a TimestepBalancer saw and decided."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.layout import curves_by_step, finish
from ldmprobe.tracking.style import IDEAL


def progress_chart(balance: Sequence[ProbeRecord]) -> go.Figure:
    """Held-out progress over log-SNR, coloured by training step; the first decision, before any progress is known, is left out."""
    figure = go.Figure()
    curves_by_step(figure, balance[1:] or balance, "balance_progress", over_log_snr=True)
    return finish(figure, "log-SNR (noisy to clean)", "nats per level and 1,000 steps", log_y=True)


def steering_chart(balance: Sequence[ProbeRecord]) -> go.Figure:
    """The density that was drawn by, coloured by training step; of a dry run, the one that would have been."""
    figure = go.Figure()
    metric = "balance_target" if balance[-1].provenance["dry_run"] else "balance_density"
    curves_by_step(figure, balance, metric, over_log_snr=True)
    figure.add_hline(y=1, line={"color": IDEAL, "dash": "dash", "width": 2})
    return finish(figure, "log-SNR (noisy to clean)", "density, 1 is the mean")
