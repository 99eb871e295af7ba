"""Each with each: a family of curves whose members are the rows of a matrix."""

from __future__ import annotations

import numpy as np

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.chart import Cells, Chart, Panel


def matrix_chart(record: ProbeRecord, family: str) -> Chart:
    """Draw the members of a family as rows, the first at the bottom; white is its ideal."""
    prefix = family.removesuffix("*")
    names = [name for name in record.curves if name.startswith(prefix)]
    metric, members = record.metric(names[0]), [name.removeprefix(prefix) for name in names]
    values = np.stack([record.curves[name].value for name in names])
    middle = float(metric.ideal) if isinstance(metric.ideal, int | float) else 0.0
    cells = Cells(members, members, values, middle - 1, middle + 1, metric.unit)
    return Chart([Panel([cells], metric.along, metric.along, metric.title)], square=True)
