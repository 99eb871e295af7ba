"""RecordStore: probe records on disk. One Parquet file each, written whole or not at all, never changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from ldmprobe.errors import ConfigurationError
from ldmprobe.probing.record import ProbeRecord
from ldmprobe.whole_file import whole_file


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
        path = self.folder / f"{record.probe}-{record.step:08d}.parquet"
        if path.exists():
            return path
        with whole_file(path) as file:
            pq.write_table(record.to_table(), file, compression="zstd")
        return path

    def set_aside(self, after: int) -> None:
        """Move records of later steps than ``after`` to ``run_dir/superseded``: a run that goes on from there takes them anew."""
        aside = self.folder.parent / "superseded"
        for path in self.folder.glob("*-*.parquet"):
            step = path.stem.rpartition("-")[2]
            if step.isdecimal() and int(step) > after:
                aside.mkdir(exist_ok=True)
                path.replace(aside / path.name)

    def read(self, probe: str | None = None) -> list[ProbeRecord]:
        """All records (of one probe), by training step. One that cannot be read is skipped with a warning."""
        return sorted(self._read(probe), key=lambda record: (record.probe, record.step))

    def _read(self, probe: str | None) -> Iterator[ProbeRecord]:
        for path in sorted(self.folder.glob(f"{probe or '*'}-*.parquet")):
            try:
                yield ProbeRecord.read(path)
            except (OSError, ValueError) as error:
                warnings.warn(f"{path} is not a readable probe record and was skipped: {error}", stacklevel=3)

    def require(self) -> list[ProbeRecord]:
        """All records.

        Raises:
            ConfigurationError: there are none.
        """
        records = self.read()
        if not records:
            raise ConfigurationError(
                f"There are no probe records in {self.folder}; expected a run directory with `probes/`."
            )
        return records
