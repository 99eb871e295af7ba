"""Noise level by training step: how each level of a metric develops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.chart import Cells, Chart, Panel, positive
from ldmprobe.tracking.history import SOME, thinned

COLUMNS = SOME  # records, at most


def heatmap_chart(records: Sequence[ProbeRecord], name: str) -> Chart:
    """Draw a curve's values over training step (across) and noise level (up, noisy to clean): white where it should
    be.
    """
    records = thinned([record for record in records if name in record.curves], COLUMNS)
    metric, curves = records[-1].metric(name), [record.curves[name] for record in records]
    # Bands of the training loss that nothing was drawn in are missing in some records.
    levels = sorted({level for curve in curves for level in zip(curve.log_snr, curve.timestep, strict=True)})
    row = {level: k for k, level in enumerate(levels)}
    values = np.full((len(levels), len(curves)), np.nan)
    for k, curve in enumerate(curves):
        values[[row[level] for level in zip(curve.log_snr, curve.timestep, strict=True)], k] = curve.value
    ideal = metric.ideal if isinstance(metric.ideal, int | float) else None
    unit = metric.unit
    if metric.log:
        values, unit = np.log10(positive(values)), f"log10 of {unit}"
        ideal = np.log10(ideal) if ideal else None
    finite = values[np.isfinite(values)]
    if ideal is None:
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    else:
        # A few levels that are far off, as those of the untrained network, are not to press all others into white.
        reach = float(np.percentile(np.abs(finite - ideal), 85)) if finite.size else 1.0
        low, high = ideal - (reach or 1.0), ideal + (reach or 1.0)
    labels = [f"{log_snr:+.1f}" for log_snr, _ in levels]
    labels = labels if len({*labels}) == len(labels) else [f"t = {timestep}" for _, timestep in levels]
    cells = Cells(
        [f"{record.step:,}" for record in records],
        labels,
        values,
        low,
        high,
        unit,
        diverging=ideal is not None,
        high_is_good=metric.good == "higher",
    )
    return Chart([Panel([cells], "training step", "log-SNR (noisy to clean)", metric.title)])
