"""One run, one directory, one process that writes it: checked before anything is written."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ldmprobe.errors import ConfigurationError
from ldmprobe.whole_file import remove_partials

_RECORDS = ("probes/*.parquet", "report.html", "reference.safetensors")
_TRACES = (*_RECORDS, "checkpoints/*.ckpt")
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


def occupy(run_dir: str | Path, wait_s: float = 10.0) -> None:
    """Keep every other process out of ``run_dir`` until :func:`vacate`, or until this one ends, however it ends: the lock is the
    kernel's. Then clear away what a process that was killed has left half written.

    Args:
        wait_s: a killed run's data-loader workers take some seconds to notice; so long the directory is waited for.

    Raises:
        ConfigurationError: another process has it.
    """
    folder = Path(run_dir).resolve()
    if folder in _held:
        return
    lock = FileLock(folder / ".lock", timeout=wait_s)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"Another run is writing into {run_dir}. Wait until it has ended, or choose another `--run_dir`."
        ) from None
    except OSError as error:
        warnings.warn(
            f"{run_dir} cannot be locked ({error.strerror}): nothing keeps a second run from writing there.",
            stacklevel=2,
        )
        return
    _held[folder] = lock
    remove_partials(folder / "probes")
    remove_partials(folder / "checkpoints")


def vacate() -> None:
    """Let other processes have what this one occupied."""
    while _held:
        folder, lock = _held.popitem()
        (folder / ".lock").unlink(missing_ok=True)  # while it is still ours
        lock.release()
