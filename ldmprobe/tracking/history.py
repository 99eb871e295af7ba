"""A probe's records over training in bounded memory: some of them, evenly spaced, without what there is of each
sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, overload

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.record_file import Part, read_record
from ldmprobe.io.store import RecordStore, read_or_skip, step_of

T = TypeVar("T")
SOME = 64  # records of a probe that are looked at, at most, where it has many


def thinned(items: Sequence[T], at_most: int) -> list[T]:
    """Return every item, or every second, fourth or 2ᵏ-th, and the last, as it takes for there to be at most
    ``at_most``.

    What has once been left out stays out as items are added, so that a history which is thinned at each probe reads no
    file twice.
    """
    stride = 1
    while len(chosen := {*range(0, len(items), stride), *range(len(items))[-1:]}) > max(at_most, 2):
        stride *= 2
    return [items[i] for i in sorted(chosen)]


class RunningHistory:
    """The scalars and curves of one probe while training goes on: of some earlier records, and of the latest.

    Which ones depends on nothing but the files there are, so that a resumed run goes on as if it had never stopped. Of
    earlier records only the names of their files are looked at; those that are chosen stay in memory, a few kilobytes
    each.
    """

    def __init__(self, store: RecordStore, at_most: int = SOME) -> None:
        self.store, self.at_most = store, at_most
        self._kept: dict[Path, ProbeRecord | None] = {}

    def upto(self, record: ProbeRecord) -> list[ProbeRecord]:
        """Return the records that were measured as ``record`` was, in order of training step; it is the last."""
        earlier = [path for path in self.store.paths(record.probe) if step_of(path) < record.step]
        chosen = thinned([*earlier, self.store.path(record)], self.at_most)
        self._kept[chosen[-1]] = record.numbers
        self._kept = {path: self._numbers(path) for path in chosen}
        return [kept for kept in self._kept.values() if kept and kept.fingerprints == record.fingerprints]

    def _numbers(self, path: Path) -> ProbeRecord | None:
        return self._kept[path] if path in self._kept else read_or_skip(path, Part.NUMBERS)


class RecordSeries(Sequence[ProbeRecord]):
    """Records of one probe on disk, in order of training step. Each is read when it is asked for; only the
    one that was asked for last is kept.

    Attributes:
        paths: their files.
        steps: when they were made.
    """

    def __init__(self, paths: Sequence[Path], steps: Sequence[int]) -> None:
        self.paths, self.steps = list(paths), list(steps)
        self._kept: tuple[Path, ProbeRecord] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> ProbeRecord: ...

    @overload
    def __getitem__(self, index: slice) -> RecordSeries: ...

    def __getitem__(self, index: int | slice) -> ProbeRecord | RecordSeries:
        if isinstance(index, slice):
            return RecordSeries(self.paths[index], self.steps[index])
        path = self.paths[index]
        if self._kept is None or self._kept[0] != path:
            try:
                self._kept = path, read_record(path)
            except (OSError, ValueError) as error:
                raise ConfigurationError(f"{path} is damaged ({error}); move it away.") from error
        return self._kept[1]

    def thinned(self, at_most: int) -> RecordSeries:
        """Return some of the records, evenly spaced."""
        chosen = thinned(range(len(self)), at_most)
        return RecordSeries([self.paths[i] for i in chosen], [self.steps[i] for i in chosen])

    def numbers(self) -> list[ProbeRecord]:
        """The scalars and curves of all that can be read; the others are skipped with a warning."""
        return [record for path in self.paths if (record := read_or_skip(path, Part.NUMBERS)) is not None]


def steps_of(records: Sequence[ProbeRecord]) -> list[int]:
    """Their training steps, with nothing read."""
    return records.steps if isinstance(records, RecordSeries) else [record.step for record in records]


def comparable_series(store: RecordStore, until: int | None = None) -> dict[str, RecordSeries]:
    """Return by probe the records that were measured as its last one was, up to training step ``until``.

    Only headers are read, and where a probe has many records only those of some, evenly spaced: where these agree, all
    do. A file whose header cannot be read is skipped with a warning.
    """
    by_probe: dict[str, list[Path]] = {}
    for path in store.paths():
        if until is None or step_of(path) <= until:
            by_probe.setdefault(path.name.rpartition("-")[0], []).append(path)
    series = {probe: _comparable(paths) for probe, paths in by_probe.items()}
    return {probe: found for probe, found in series.items() if found}


def _comparable(paths: Sequence[Path]) -> RecordSeries:
    """Return those of a probe's records that were measured as the last one that can be read."""
    some = thinned(paths, SOME)
    headers = {path: read_or_skip(path, Part.HEADER) for path in some}
    prints = [header.fingerprints if header else None for header in headers.values()]
    if all(each is not None and each == prints[-1] for each in prints):
        return RecordSeries(paths, [step_of(path) for path in paths])
    headers |= {path: read_or_skip(path, Part.HEADER) for path in paths if path not in headers}
    known = [(path, header.fingerprints) for path in paths if (header := headers[path]) is not None]
    kept = [path for path, fingerprints in known if fingerprints == known[-1][1]]
    return RecordSeries(kept, [step_of(path) for path in kept])
