"""Jobs of a study: processes of their own, a few at a time, none of which is repeated once it has finished."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_LOG_LINES = 15


@dataclass(frozen=True)
class Job:
    """A process that a study needs.

    Attributes:
        name: what it is called in what is printed.
        folder: where it works; ``finished`` in it marks that it has, and ``log.txt`` has what it printed.
        needs: jobs that have to be finished before it begins.
    """

    name: str
    folder: Path
    needs: tuple[Job, ...] = ()

    @property
    def mark(self) -> Path:
        return self.folder / "finished"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


class Process(Protocol):
    """A process that has been started."""

    returncode: int | None

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def wait(self) -> object: ...


def run_jobs(jobs: Sequence[Job], start: Callable[[Job], Process], processes: int) -> dict[Job, str]:
    """Run what is not finished, ``processes`` at a time, and return what is to be said of those that failed. A job that
    fails ends no other but those that need it.
    """
    waiting = [job for job in jobs if not job.mark.exists()]
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished.", flush=True)
    running: dict[Job, Process] = {}
    failed: dict[Job, str] = {}
    try:
        while waiting or running:
            for job in [job for job in waiting if any(other in failed for other in job.needs)]:
                waiting.remove(job)
                failed[job] = f"{job.name} was not begun, since what it needs failed"
            ready = [job for job in waiting if all(other.mark.exists() for other in job.needs)]
            for job in ready[: processes - len(running)]:
                waiting.remove(job)
                print(f"{job.name}: {'goes on' if job.folder.exists() else 'begins'}", flush=True)
                running[job] = start(job)
            time.sleep(0.2)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                if (code := running.pop(job).returncode) == 0:
                    job.mark.touch()
                    print(f"{job.name}: finished, {len(waiting) + len(running)} to go", flush=True)
                else:
                    failed[job] = f"{job.name} failed with exit code {code}"
                    print(f"{failed[job]}. The end of {job.log}:\n{_end(job.log)}", flush=True)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def start_command(job: Job, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a job that is a command of `ldmprobe`, on one thread, with its output in the job's log."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ldmprobe.cli", *arguments]
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _end(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join(f"    {line}" for line in lines)
