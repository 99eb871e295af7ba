"""Which earlier probe the last one of a run is compared with. What a band does, training must have had time to show:
over a single step no error falls, and nothing is about to be mended.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ldmprobe.io.record import ProbeRecord

_OF_USUAL = 0.5  # of the usual interval: the probe at training's end may come right after one that was due
_OF_TRAINING = 0.1  # of the steps so far: in a run that is probed often, errors hardly fall from probe to probe


def index_before(steps: Sequence[int]) -> int:
    """Return which of a run's probes the last is compared with: the latest that is half the median interval of those
    before it and a tenth of training earlier, or more; the first where none is.

    Args:
        steps: of the probes, in order; two or more.
    """
    usual = float(np.median(np.diff(steps[:-1]))) if len(steps) > 2 else 0.0
    latest = steps[-1] - max(_OF_USUAL * usual, _OF_TRAINING * steps[-1])
    return max(sum(step <= latest for step in steps) - 1, 0)


def well_apart(records: Sequence[ProbeRecord]) -> list[ProbeRecord]:
    """Return the records of a run without those between the last and the one that it is compared with, so that this is
    the last but one.

    Args:
        records: of one probe, in order of training step.
    """
    if len(records) < 2:
        return list(records)
    return [*records[: index_before([record.step for record in records]) + 1], records[-1]]
