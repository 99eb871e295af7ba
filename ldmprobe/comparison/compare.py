"""``ldmprobe compare``: several runs against the first of them, as one HTML page and one tidy table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from ldmprobe.comparison.findings import compare
from ldmprobe.comparison.page import comparison_html
from ldmprobe.comparison.table import comparison_table
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import PARTIAL, atomic_write
from ldmprobe.tracking.comparable import read_runs

PAGE, TABLE = "comparison.html", "comparison.parquet"


def write_comparison(directories: Sequence[str | Path], out: str | Path, labels: Sequence[str] | None = None) -> Path:
    """Compare the runs in ``directories`` with the first of them; returns the page's path, the table lies beside it.

    Args:
        out: a directory for both; a new one, or that of an earlier comparison.
        labels: what to call the runs; default: their directories' names.

    Raises:
        ConfigurationError: runs that cannot be compared (see ``read_runs``), or ``out`` holds
            something else or cannot be written.
    """
    out = Path(out)
    _refuse_occupied(out)
    comparison = compare(read_runs([Path(directory) for directory in directories], labels))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(out / TABLE) as file:
            pq.write_table(comparison_table(comparison), file, compression="zstd")
        with atomic_write(out / PAGE) as file:
            file.write(comparison_html(comparison).encode())
    except OSError as error:
        raise ConfigurationError(f"The comparison cannot be written to {out}: {error.strerror}.") from error
    return out / PAGE


def _refuse_occupied(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"--out is {out}, which is a file; expected a directory.")
    if out.is_dir() and (
        other := next((p for p in out.iterdir() if p.name not in (PAGE, TABLE) and p.suffix != PARTIAL), None)
    ):
        raise ConfigurationError(
            f"--out is {out}, which holds something else ({other.name}); choose a new directory, or that of an earlier "
            "comparison."
        )
