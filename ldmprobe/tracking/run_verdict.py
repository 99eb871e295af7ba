"""The verdict on the run in a directory, at a cost that does not grow with its length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldmprobe.diffusion.measured_grid import MeasuredGrid
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore, read_or_skip, step_of
from ldmprobe.probing.class_information import CURVE
from ldmprobe.probing.copies import QUALITY
from ldmprobe.probing.denoising_record import PROBE
from ldmprobe.probing.judge import judge
from ldmprobe.probing.memorization_record import PROBE as MEMORIZATION
from ldmprobe.probing.objective import PROBE as OBJECTIVE
from ldmprobe.probing.probe_before import index_before
from ldmprobe.probing.recipe import recipe_advice
from ldmprobe.probing.verdict import State, Verdict
from ldmprobe.tracking.history import thinned

_LATEST, _EARLIER = 3, 12  # records that are read: what it takes to see a trend, and where it turned


def judged_records(run_dir: str | Path, until: int | None = None) -> list[ProbeRecord]:
    """Return the records that a verdict on a run is made of: its last denoising records, the one that the last is
    compared with, some of the earlier ones, and the last records until then of what is trained, of memorization and of
    samples.

    Args:
        until: the last training step that counts; default: all do.

    Raises:
        ConfigurationError: there are no records of any probe.
    """
    store = RecordStore(run_dir)
    if not store.paths():
        raise store.no_records
    paths = [path for path in store.paths(PROBE) if until is None or step_of(path) <= until]
    chosen = [*thinned(paths[:-_LATEST], _EARLIER), *paths[-_LATEST:]]
    if len(paths) > 1:
        chosen.append(paths[index_before([step_of(path) for path in paths])])
    last = step_of(paths[-1]) if paths else until
    for probe in (OBJECTIVE, MEMORIZATION, QUALITY):
        chosen += [path for path in store.paths(probe) if last is None or step_of(path) <= last][-1:]
    return [record for path in sorted(dict.fromkeys(chosen), key=step_of) if (record := read_or_skip(path)) is not None]


def verdict_on(run_dir: str | Path, until: int | None = None) -> Verdict:
    """Return the verdict on the run in a directory.

    Args:
        until: the last training step that counts: a run that is gone on with may have later records, of a past that was
            lost; default: all do.

    Raises:
        ConfigurationError: there are no records of any probe.
    """
    return judge(judged_records(run_dir, until))


def told_in_full(run_dir: str | Path, records: Sequence[ProbeRecord], verdict: Verdict) -> str:
    """Return a verdict in words and, of a network that can do something, what else its records advise: the levels to
    sample at, the interval to guide in, the learning rate.

    Args:
        records: of ``judged_records``, which the verdict is made of.
    """
    advice: list[str] = []
    if verdict.state not in (State.CANNOT_SAY, State.BROKEN):
        last = [record for record in records if record.probe == PROBE][-1]
        guidance = last.provenance.get("notes", {}).get(CURVE)
        advice = [MeasuredGrid(str(run_dir)).advice, *([guidance] if guidance else []), recipe_advice(records)]
    return "\n".join([verdict.in_full, *(f"  {sentence}" for sentence in advice if sentence)])
