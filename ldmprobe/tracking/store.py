"""RecordStore: probe records on disk. One Parquet file each, written whole or not at all, never changed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from ldmprobe.errors import ConfigurationError
from ldmprobe.probing.record import ProbeRecord


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
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{path.name}.{os.getpid()}.partial"
        try:
            with partial.open("wb") as file:
                pq.write_table(record.to_table(), file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def read(self, probe: str | None = None) -> list[ProbeRecord]:
        """All records (of one probe), by training step. One that cannot be read is skipped with a warning."""
        return sorted(self._read(probe), key=lambda record: (record.probe, record.step))

    def _read(self, probe: str | None) -> Iterator[ProbeRecord]:
        for path in sorted(self.folder.glob(f"{probe or '*'}-*.parquet")):
            try:
                yield ProbeRecord.from_table(pq.ParquetFile(path).read())
            except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
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
