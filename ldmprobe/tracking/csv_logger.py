"""A CSV logger that keeps one ``metrics.csv`` over the whole run, however often it is resumed."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from ldmprobe.io.atomic import atomic_write
from ldmprobe.types import Batch


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSVLogger, except that a resumed run appends to the file of the run it resumes, where Lightning's
    begins another (``version_1``) or deletes it. A row that is logged again, with the same step and columns, replaces
    the old one. Rows after the step that a run goes on from are moved to ``metrics.superseded.csv``, by any probe
    callback and by ExactResume.
    """

    def __init__(
        self,
        save_dir: str,
        name: str | None = "lightning_logs",
        version: int | str | None = 0,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(save_dir, name, 0 if version is None else version, prefix, flush_logs_every_n_steps)

    @property
    @rank_zero_experiment
    def experiment(self) -> _GoingOn:
        if not isinstance(self._experiment, _GoingOn):
            self._experiment = _GoingOn(self.log_dir)
        return self._experiment

    def set_aside(self, after: int) -> None:
        """Move the rows of later steps than ``after`` that were there before this logger to
        ``metrics.superseded.csv``.
        """
        self.experiment.set_aside(after)


class _GoingOn(ExperimentWriter):
    """Appends to what is there; rewrites it, whole or not at all, only for a new column, a row that comes again or is
    set aside, or a last line that was cut off.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.path = Path(self.metrics_file_path)
        rows = _read(self.path)
        self.metrics_keys = list(rows[0]) if rows else []
        self._earlier = {_key(row) for row in rows}
        self._cut_off = self.path.exists() and not self.path.read_bytes().endswith(b"\n")

    def _check_log_dir_exists(self) -> None:
        """Accept a folder that is there: it may hold the rows to go on from."""

    def save(self) -> None:
        new, self.metrics = self.metrics, []
        if not new:
            return
        again = self._earlier & {_key(row) for row in new}
        self._earlier -= again
        columns = sorted(set(self.metrics_keys).union(*new))
        if again or self._cut_off or columns != self.metrics_keys or not self.path.exists():
            self.metrics_keys, self._cut_off = columns, False
            _write(self.path, [row for row in _read(self.path) if _key(row) not in again] + new, columns)
        else:
            with self.path.open("ab") as file:
                file.write(_text(new, columns).encode())

    def set_aside(self, after: int) -> None:
        later = {key for key in self._earlier if key[0] > after}
        if not later:
            return
        rows, aside = _read(self.path), self.path.with_suffix(".superseded.csv")
        before = _read(aside)
        columns = sorted({*self.metrics_keys, *(before[0] if before else ())})
        _write(aside, before + [row for row in rows if _key(row) in later], columns)
        _write(self.path, [row for row in rows if _key(row) not in later], self.metrics_keys)
        self._earlier, self._cut_off = self._earlier - later, False


def _key(row: Batch) -> tuple[int, frozenset[str]]:
    return int(row["step"]), frozenset(name for name, value in row.items() if value not in ("", None))


def _read(path: Path) -> list[Batch]:
    """The rows of a file, less a last one that was cut off while it was written."""
    if not path.exists():
        return []
    whole_lines = path.read_bytes().decode(errors="replace").rpartition("\n")[0]
    return [row for row in csv.DictReader(io.StringIO(whole_lines)) if None not in row.values() and row.get("step")]


def _write(path: Path, rows: list[Batch], columns: list[str]) -> None:
    with atomic_write(path) as file:
        file.write(_text(rows, columns, header=True).encode())


def _text(rows: list[Batch], columns: list[str], header: bool = False) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
