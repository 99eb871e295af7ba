"""Runs over each other: a color each, the same in every chart, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ldmprobe.analysis.intervals import ClusteredMean
from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.chart import Chart, Line, Panel
from ldmprobe.tracking.charts.curves import LOG_SNR, Axis, axis_of, panel
from ldmprobe.tracking.style import CLASS_COLORS, IDEAL, class_color

Records = Mapping[str, ProbeRecord]  # by run


def runs_charts(moments: Mapping[str, Records], name: str) -> dict[str, Chart]:
    """Draw a curve of each run and its ideal, in a chart for each moment.

    Args:
        moments: when, in words, and the records then.
    """
    every = [record for records in moments.values() for record in records.values()]
    metric = every[0].metric(name)
    axis, charts = axis_of(metric), {}
    for when, records in moments.items():
        marks = []
        for i, (label, record) in enumerate(records.items()):
            curve = record.curves[name]
            marks.append(_run(i, label, axis.of(record, curve), curve.value, curve.lower, curve.upper))
        marks += _ideals(records, str(metric.ideal_of(name)), axis)
        charts[when] = Chart([panel(metric, axis, marks, *(record.curves[name] for record in every))])
    return charts


def gains_charts(log_snr: np.ndarray, moments: Mapping[str, Mapping[str, ClusteredMean]]) -> dict[str, Chart]:
    """Draw the paired gain over the first run, in nats per level: that of the others, in a chart for each moment."""
    charts = {}
    for when, gains in moments.items():
        marks = [_mean(i, label, log_snr, gain) for i, (label, gain) in enumerate(gains.items(), start=1)]
        charts[when] = Chart([Panel(marks, LOG_SNR.title, "nats per level; above 0 is better", level=0.0)])
    return charts


def bounds_chart(histories: Mapping[str, tuple[np.ndarray, ClusteredMean]]) -> Chart:
    """Draw the held-out bound over training, steps (K,) and bound (K,) of each run; dashed: the first run's last."""
    values = np.concatenate([bound.value for _, bound in histories.values()])
    known = values[np.isfinite(values)]
    log = bool(known.size and known.min() > 0 and known.max() > 3 * known.min())
    marks = [_mean(i, label, steps, bound, True) for i, (label, (steps, bound)) in enumerate(histories.items())]
    target = float(next(iter(histories.values()))[1].value[-1])
    level = target if np.isfinite(target) else None
    return Chart([Panel(marks, "training step", "nats, lower is better", level=level, log=log)])


def _ideals(records: Records, name: str, axis: Axis) -> list[Line]:
    """Return the ideal that all runs have; each its own, in its color, where they differ: as they do in the number of
    passes, the grid, the sampler or the process.
    """
    lines, title = [], ""
    for i, (label, record) in enumerate(records.items()):
        if (curve := record.curves.get(name)) is not None:
            title = record.metric(name).title
            own = f"{title}, {label}"
            lines.append(Line(axis.of(record, curve), curve.value, class_color(i), "", "dash", hover=own))
    if len(lines) == len(records) and all(_agree(line, lines[0]) for line in lines):
        return [Line(lines[0].x, lines[0].y, IDEAL, title, "dash", 2.2)]
    return [replace(line, name=f"{title}, of each run" if k == 0 else "") for k, line in enumerate(lines)]


def _agree(one: Line, other: Line) -> bool:
    pairs = ((one.x, other.x), (one.y, other.y))
    return all(len(a) == len(b) and np.allclose(a, b, equal_nan=True) for a, b in pairs)


def _mean(i: int, label: str, x: np.ndarray, mean: ClusteredMean, markers: bool = False) -> Line:
    return _run(i, label, x, mean.value, mean.value - mean.half_width, mean.value + mean.half_width, markers)


def _run(
    i: int,
    label: str,
    x: np.ndarray,
    y: np.ndarray,
    lower: np.ndarray | None,
    upper: np.ndarray | None,
    markers: bool = False,
) -> Line:
    dash = ("solid", "dot", "dash")[i // len(CLASS_COLORS) % 3]
    return Line(x, y, class_color(i), label, dash, 2.2, lower, upper, markers=markers, hover=label)
