"""Scatters of latents at several noise levels, beside those of real ones."""

from __future__ import annotations

import numpy as np

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.chart import Chart, Panel, Points
from ldmprobe.tracking.style import ACCENT, REAL, class_color

FRAMES, POINTS = 16, 512  # records of a slider over training, and samples of a noise level, at most


def scatter_chart(record: ProbeRecord, name: str) -> Chart:
    """Draw a scatter, a panel for each noise level, colored by class, with that called ``{name}_real`` in gray behind
    it.
    """
    scatters, real = record.scatters[name], record.scatters.get(f"{name}_real")
    labels, unit = (record.provenance.get("sample_labels") or [])[:POINTS], record.metric(name).unit
    color = [class_color(int(label)) for label in labels] or ACCENT
    hover = [f"sample {i}, class {label}" for i, label in enumerate(labels)]
    titles = [f"t = {scatter.timestep}, log-SNR {scatter.log_snr:.1f}" for scatter in scatters[:-1]]
    panels = []
    for i, (scatter, title) in enumerate(zip(scatters, [*titles, "final latents"], strict=True)):
        marks = [Points(real[i].xy[:POINTS], REAL, "real latents", 4, 0.55)] if real and i < len(real) else []
        framed = np.concatenate([scatter.xy[:POINTS], *(mark.xy for mark in marks)])
        marks.append(Points(scatter.xy[:POINTS], color, "samples", 5.5, 0.9, hover, moves=True))
        limit = 1.1 * float(np.nanmax(np.abs(np.where(np.isfinite(framed), framed, 0)), initial=0.1))
        panels.append(Panel(marks, f"{unit} 1", f"{unit} 2", title, x_range=(-limit, limit), y_range=(-limit, limit)))
    return Chart(panels, columns=min(3, len(panels)), square=True)
