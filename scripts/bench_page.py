"""What the page of a run costs after 10 probes and after 1,000: its size, and CPU seconds to write it.

    python scripts/bench_page.py runs/digits

The records of a finished run are repeated, in turn and at other training steps, until each probe has so many. Fails
where a page is larger, or takes longer, than it may.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ldmprobe import ProbeRecord, RecordStore, write_report
from ldmprobe.io.record_file import write_record

LIMITS = {10: (600_000, 1.0), 1000: (2_000_000, 3.0)}  # probes: bytes, CPU seconds
EVERY = 100  # training steps between two probes


def repeated(run: Path, number: int, into: Path) -> None:
    """Write ``number`` records of each probe that ``run`` has several of, and the others as they are."""
    store = RecordStore(into)
    store.folder.mkdir(parents=True)
    by_probe: dict[str, list[ProbeRecord]] = {}
    for record in RecordStore(run).read():
        by_probe.setdefault(record.probe, []).append(record)
    for records in by_probe.values():
        trained = records[1:] or records
        for k in range(number if len(records) > 1 else 1):
            record = replace(trained[(k - 1) % len(trained)] if k else records[0], step=EVERY * k)
            with store.path(record).open("wb") as file:
                write_record(record, file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of a finished run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_report(args.run, Path(folder) / "first.html")  # imports what pages are made with
        failed = False
        for number, (most_bytes, most_seconds) in LIMITS.items():
            repeated(args.run, number, Path(folder) / str(number))
            began = time.process_time()
            page = write_report(Path(folder) / str(number))
            seconds, size = time.process_time() - began, page.stat().st_size
            failed |= size > most_bytes or seconds > most_seconds
            print(f"{number:5,} probes: {size / 1e3:6.0f} kB (at most {most_bytes / 1e3:,.0f}), ", end="")
            print(f"{seconds:.2f} s (at most {most_seconds:g})", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
