"""RecordStore: probe records on disk. One Parquet file each, written whole or not at all, never changed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_write
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.record_file import Part, read_record, write_record
from ldmprobe.io.run_directory import set_aside

_NAME = re.compile(r"[^/]+-[0-9]{1,19}\.parquet")


class RecordStore:
    """The folder ``run_dir/probes``. Readable as one table with pandas, DuckDB and ``datasets``::

    pandas.read_parquet("runs/digits/probes")
    duckdb.sql("select * from 'runs/digits/probes/*.parquet'")
    datasets.load_dataset("parquet", data_files="runs/digits/probes/*.parquet")
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.folder = Path(run_dir) / "probes"

    def append(self, record: ProbeRecord) -> Path:
        """Put a record on disk. One that is already there (from before a resume) stays as it is."""
        path = self.path(record)
        if path.exists():
            return path
        with atomic_write(path) as file:
            write_record(record, file)
        return path

    def path(self, record: ProbeRecord) -> Path:
        """Return where a record belongs."""
        return self.folder / f"{record.probe}-{record.step:08d}.parquet"

    def set_aside(self, after: int) -> None:
        """Move records of later steps than ``after`` to ``run_dir/superseded``: a run that goes on from there takes
        them anew.
        """
        set_aside(self.folder.parent, (path for path in self.paths() if step_of(path) > after))

    def paths(self, probe: str | None = None) -> list[Path]:
        """The files of all records (of one probe), by training step, as their names have it; none is opened."""
        found = [path for path in self.folder.glob("*.parquet") if _NAME.fullmatch(path.name)]
        chosen = [path for path in found if probe is None or path.name.rpartition("-")[0] == probe]
        return sorted(chosen, key=lambda path: (path.name.rpartition("-")[0], step_of(path)))

    def read(self, probe: str | None = None) -> list[ProbeRecord]:
        """All records (of one probe), by training step. One that cannot be read is skipped with a warning."""
        found = [record for path in self.paths(probe) if (record := read_or_skip(path)) is not None]
        return sorted(found, key=lambda record: (record.probe, record.step))

    def at(self, probe: str, step: int) -> ProbeRecord | None:
        """Return the record of a probe at a training step, or None where there is none that can be read."""
        path = next((path for path in self.paths(probe) if step_of(path) == step), None)
        return None if path is None else read_or_skip(path)

    def last_before(self, probe: str, step: int, among: Callable[[int], bool] = lambda _: True) -> ProbeRecord | None:
        """Return the last record of a probe before ``step``, of the steps that are ``among`` some; it is the only one
        that is read.
        """
        for path in reversed(self.paths(probe)):
            if step_of(path) < step and among(step_of(path)) and (record := read_or_skip(path)):
                return record
        return None

    @property
    def no_records(self) -> ConfigurationError:
        """Return what to tell a user whose directory holds none."""
        return ConfigurationError(
            f"There are no probe records in {self.folder}; expected a run directory with `probes/`."
        )


def step_of(path: Path) -> int:
    """The training step in a record's file name."""
    return int(path.stem.rpartition("-")[2])


def read_or_skip(path: Path, part: Part = Part.ALL) -> ProbeRecord | None:
    """The record in a file, or None and a warning where it cannot be read."""
    try:
        return read_record(path, part)
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} is not a readable probe record and was skipped: {error}", stacklevel=3)
        return None
