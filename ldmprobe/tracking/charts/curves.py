"""A metric of records as a panel: its curves over noise levels by training step, the members of a family, or a scalar
over training. Noise levels may be laid out along several axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.tracking.charts.chart import Cells, Chart, Line, Panel, positive
from ldmprobe.tracking.history import thinned
from ldmprobe.tracking.style import ACCENT, BESIDE, CLASS_COLORS, IDEAL, step_color

CURVES = 24  # of one metric in a chart, at most
Beside = Mapping[str, ProbeRecord]  # the latest record that holds a curve, by the curve's name


@dataclass(frozen=True)
class Axis:
    """An axis that the levels of a curve are laid out along.

    Attributes:
        name: in a choice of axes.
        title: below the axis.
        of: (record, one of its curves) → the place of each level, (L,).
        log: whether it is logarithmic.
    """

    name: str
    title: str
    of: Callable[[ProbeRecord, Curve], np.ndarray]
    log: bool = False


LOG_SNR = Axis("log-SNR", "log-SNR (noisy to clean)", lambda _, curve: curve.log_snr)


def axis_of(metric: Metric) -> Axis:
    """Return the axis that a metric's levels are laid out along in any record: log-SNR, or what it says itself."""
    if not metric.along:
        return LOG_SNR

    def places(record: ProbeRecord, curve: Curve) -> np.ndarray:
        return record.curves[metric.places].value if metric.places else np.arange(len(curve.value))

    return Axis(metric.along, metric.along, places, log=metric.log_along)


def curves_chart(records: Sequence[ProbeRecord], name: str, beside: Beside | None = None) -> Chart:
    """Draw a curve of each record, colored by training step; the interval of the last and the ideal are beside them."""
    records = [record for record in records if name in record.curves]
    steps = (records[0].step, records[-1].step)
    records, last = thinned(records, CURVES), records[-1]
    metric, axis = last.metric(name), axis_of(last.metric(name))
    marks = []
    for i, record in enumerate(records):
        curve, latest = record.curves[name], record is records[-1]
        marks.append(
            Line(
                axis.of(record, curve),
                curve.value,
                step_color(i / (len(records) - 1)) if len(records) > 1 else ACCENT,
                width=2.4 if latest else 1.5,
                lower=curve.lower if latest else None,
                upper=curve.upper if latest else None,
                markers=metric.along != "" and not metric.log_along,
                hover=f"training step {record.step:,}",
                step=record.step,
            )
        )
    marks += _references(metric, name, last, beside or {}, axis)
    framed = [last.curves[each] for each in (name, str(metric.ideal_of(name))) if each in last.curves]
    return Chart([panel(metric, axis, marks, *framed)], steps=steps if len(records) > 1 else None)


def family_chart(record: ProbeRecord, family: str) -> Chart:
    """Draw each curve of a family, such as those of eigen-bands, in a color of its own, with its ideal dashed; or all
    of them as a matrix.
    """
    if record.metric(family).matrix:
        return _matrix(record, family)
    names = sorted(name for name in record.curves if f"{name.rpartition('/')[0]}/*" == family)
    metric, marks, axis = record.metric(names[0]), [], axis_of(record.metric(names[0]))
    for k, name in enumerate(names):
        curve, color = record.curves[name], CLASS_COLORS[k % len(CLASS_COLORS)]
        member = name.rpartition("/")[2]
        marks.append(
            Line(axis.of(record, curve), curve.value, color, member, width=2.2, lower=curve.lower, upper=curve.upper)
        )
        ideal = record.curves.get(str(metric.ideal_of(name)))
        if ideal is not None:
            label = record.metric(str(metric.ideal_of(name))).title
            marks.append(Line(axis.of(record, ideal), ideal.value, color, label if k == 0 else "", dash="dash"))
    return Chart([panel(metric, axis, marks, *(record.curves[name] for name in names))])


def scalar_chart(records: Sequence[ProbeRecord], name: str) -> Chart:
    """Draw a scalar over training, and those beside it."""
    metric = records[-1].metric(name)
    marks = []
    for k, each in enumerate((name, *metric.beside)):
        known = [record for record in records if each in record.scalars]
        if not known:
            continue
        spread = known[-1].metric(each).spread
        marks.append(
            Line(
                np.array([record.step for record in known]),
                np.array([record.scalars[each] for record in known]),
                ACCENT if k == 0 else CLASS_COLORS[k],
                known[-1].metric(each).title if metric.beside else "",
                width=2.0,
                spread=np.array([record.scalars.get(spread, np.nan) for record in known]) if spread else None,
                markers=True,
                hover=known[-1].metric(each).title,
            )
        )
    values = np.concatenate([mark.y for mark in marks])
    values = values[np.isfinite(values)]
    log = bool(values.size and 0 < 10 * values.min() < values.max())
    level = metric.ideal if isinstance(metric.ideal, int | float) and not log else None
    return Chart([Panel(marks, "training step", metric.unit, level=level, log=log)])


def panel(metric: Metric, axis: Axis, marks: Sequence[Line], *framed: Curve) -> Panel:
    """Return the panel of a metric, whose axes reach as far as the curves that are to be ``framed``: those of an
    untrained network, off by far more, would press what matters flat.
    """
    level = float(metric.ideal) if isinstance(metric.ideal, int | float) else None
    values = np.concatenate([[] if level is None else [level], *(curve.value for curve in framed)])
    limits = _limits(np.log10(positive(values)) if metric.log else values)
    if limits is not None and metric.log:
        limits = 10 ** limits[0], 10 ** limits[1]
    return Panel(marks, axis.title, metric.unit, level=level, log=metric.log, log_x=axis.log, y_range=limits)


def _matrix(record: ProbeRecord, family: str) -> Chart:
    """Draw the members of a family as rows, the first at the bottom; white is its ideal."""
    prefix = family.removesuffix("*")
    names = [name for name in record.curves if name.startswith(prefix)]
    metric, members = record.metric(names[0]), [name.removeprefix(prefix) for name in names]
    values = np.stack([record.curves[name].value for name in names])
    middle = float(metric.ideal) if isinstance(metric.ideal, int | float) else 0.0
    cells = Cells(members, members, values, middle - 1, middle + 1, metric.unit)
    return Chart([Panel([cells], metric.along, metric.along, metric.title)], square=True)


def _limits(values: np.ndarray) -> tuple[float, float] | None:
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    # One level that is far off, as the last at low noise often is, is cut off rather than all others pressed flat.
    typical = float(np.percentile(np.abs(values - np.median(values)), 75)) or 1e-6
    low, high = max(low, np.median(values) - 12 * typical), min(high, np.median(values) + 12 * typical)
    margin = 0.15 * (high - low) or 0.1
    return float(low - margin), float(high + margin)


def _references(metric: Metric, name: str, last: ProbeRecord, beside: Beside, axis: Axis) -> list[Line]:
    """Return the ideal's line, where it is a curve, and those of what is drawn beside it."""
    found = []
    ideal = metric.ideal_of(name)
    others = [(other, BESIDE[k % len(BESIDE)], "dot") for k, other in enumerate(metric.beside)]
    for each, color, dash in [(ideal, IDEAL, "dash"), *others]:
        declared = any(known.name == each for known in last.metrics)  # then another probe's would be of other samples
        holder = last if each in last.curves else None if declared else beside.get(str(each))
        if holder is not None:
            curve, label = holder.curves[str(each)], holder.metric(str(each)).title
            own = len(curve.value) == len(last.curves[name].value)
            found.append(
                Line(axis.of(holder, curve), curve.value, color, label, dash, 2.2, markers=not own, hover=label)
            )
    return found
