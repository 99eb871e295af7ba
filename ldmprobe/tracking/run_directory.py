"""One run, one directory, one process that writes it: checked before anything is written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ldmprobe.errors import ConfigurationError
from ldmprobe.whole_file import remove_partials

_RECORDS = ("probes/*.parquet", "report.html", "reference.safetensors")
_TRACES = (*_RECORDS, "checkpoints/*.ckpt")
_LOCK = ".lock"
_held: dict[Path, BaseFileLock] = {}  # by this process


def claim(run_dir: str | Path, resuming: bool, option: str = "--run_dir") -> Path:
    """Make sure that a run may write into ``run_dir``, creating it.

    Args:
        option: by which it is chosen: of a run that can go on, or "--out" of what is done once.

    Raises:
        ConfigurationError: it holds another run (and this one does not resume it), or cannot be written.
    """
    folder = Path(run_dir)
    if not resuming and folder.resolve() not in _held:
        for pattern in _TRACES:
            if trace := next(folder.glob(pattern), None):
                going_on = "; to go on with it add `--ckpt_path last`" if option == "--run_dir" else ""
                raise ConfigurationError(
                    f"{folder} already holds a run ({trace.relative_to(folder)}). Choose a new `{option}`, or move the old one away{going_on}."
                )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be created: {error.strerror}. Choose another `{option}`.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"There is no permission to write in {folder}. Choose another `{option}`.")
    return folder


def check_own(folder: str, run_dir: str | Path, setting: str) -> None:
    """Raise ConfigurationError if a setting of the run in ``run_dir`` names a folder in another run's directory."""
    if "://" in folder:
        return
    place, own = Path(folder).resolve(), Path(run_dir).resolve()
    for other in (place, *place.parents):
        is_run = (other / "config.yaml").is_file() and any(next(other.glob(trace), None) for trace in _RECORDS)
        if is_run and other not in (own, *own.parents):
            raise ConfigurationError(
                f"{setting} is {folder}, in the directory of the run {other}, whose files this run would overwrite. "
                f"Leave it out: it then follows `--run_dir`, which is {run_dir}."
            )


def occupy(run_dir: str | Path, resuming: bool, option: str = "--run_dir", wait_s: float = 10.0) -> bool:
    """:func:`claim` ``run_dir`` and keep every other process out of it until :func:`vacate`, or until this one ends, however it ends: the
    lock is the kernel's. Then clear away what a process that was killed has left half written.

    Of two runs that start at once in one new directory the second is refused, whichever is the first to train: a run is looked for
    again once the lock is held.

    Args:
        wait_s: a killed run's data-loader workers take some seconds to notice; so long the directory is waited for.

    Returns:
        whether this call has taken it: False where this process had it already, or where it cannot be locked.

    Raises:
        ConfigurationError: as :func:`claim`'s, or another process has it.
    """
    folder = claim(run_dir, resuming, option).resolve()
    if folder in _held:
        return False
    lock = FileLock(folder / _LOCK, timeout=wait_s)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"Another run is writing into {run_dir}. Wait until it has ended, or choose another `{option}`."
        ) from None
    except OSError as error:
        warnings.warn(
            f"{run_dir} cannot be locked ({error.strerror}): nothing keeps a second run from writing there.",
            stacklevel=2,
        )
        return False
    try:
        claim(run_dir, resuming, option)
    except ConfigurationError:
        lock.release()
        raise
    _held[folder] = lock
    for place in (folder, folder / "probes", folder / "checkpoints"):
        remove_partials(place)
    return True


def vacate(run_dir: str | Path | None = None) -> None:
    """Let other processes have what this one occupied: one directory, or all."""
    for folder in list(_held) if run_dir is None else [Path(run_dir).resolve()]:
        if (lock := _held.pop(folder, None)) is not None:
            (folder / _LOCK).unlink(missing_ok=True)  # while it is still ours
            lock.release()


@contextmanager
def occupied(run_dir: str | Path, resuming: bool, option: str = "--run_dir") -> Iterator[Path]:
    """``run_dir``, which this process :func:`occupies <occupy>` for the time of the block."""
    taken = occupy(run_dir, resuming, option)
    try:
        yield Path(run_dir)
    finally:
        if taken:
            vacate(run_dir)
