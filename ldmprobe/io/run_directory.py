"""The directory of a run, which one process at a time may write: reserved and locked before anything is written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import remove_partials

_MEASURED = ("probes/*.parquet", "*reference.safetensors", "*_features.safetensors")
_TRACES = (*_MEASURED, "report.html", "checkpoints/*.ckpt", "averages/*.safetensors")
_LOCK = ".lock"
_INSTEAD = {
    "--run_dir": "; to go on with it add `--ckpt_path last`",
    "run_dir": "; to begin anew in it give `overwrite=True`, to go on with it the `step` that it has come to",
}
_held: dict[Path, BaseFileLock] = {}  # by this process


def reserve(run_dir: str | Path, resuming: bool, option: str = "--run_dir") -> Path:
    """Create ``run_dir`` and check that a run may write into it.

    Args:
        option: what chose it: the command-line option "--run_dir" of a run that can be resumed, or "--out"; or
            "run_dir", the argument of a function.

    Raises:
        ConfigurationError: it holds a run that this one does not resume, or cannot be written.
    """
    folder = Path(run_dir)
    if not resuming and folder.resolve() not in _held:
        for pattern in _TRACES:
            if trace := next(folder.glob(pattern), None):
                resume = _INSTEAD.get(option, "")
                raise ConfigurationError(
                    f"{folder} already holds a run ({trace.relative_to(folder)}). Choose a new `{option}`, or move the "
                    f"old one away{resume}."
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
        if is_run(other) and other not in (own, *own.parents):
            raise ConfigurationError(
                f"{setting} is {folder}, in the directory of the run {other}, whose files this run would overwrite. "
                f"Leave it out: it then follows `--run_dir`, which is {run_dir}."
            )


def check_own_checkpoint(checkpoint: str | Path, run_dir: str | Path) -> None:
    """Raise ConfigurationError if the run in ``run_dir`` is to go on from a checkpoint in another run's directory: the
    records of the two would be mixed up.
    """
    own, place = Path(run_dir).resolve(), Path(checkpoint).resolve()
    other = next((folder for folder in place.parents if is_run(folder)), None)
    if is_run(own) and other not in (None, own):
        raise ConfigurationError(
            f"{run_dir} holds a run of its own, and {checkpoint} is a checkpoint of the run in {other}. Go on with "
            f"that one by `--run_dir {other}`, or branch off into a new `--run_dir`."
        )


def is_run(folder: Path) -> bool:
    """Return whether a folder is the directory of a run that has written something."""
    return (folder / "config.yaml").is_file() and any(next(folder.glob(trace), None) for trace in _TRACES)


def set_aside(run_dir: Path, paths: Iterable[Path]) -> list[Path]:
    """Move files of a run to ``superseded`` in its directory, and return where they are now."""
    aside, found = run_dir / "superseded", list(paths)
    if found:
        aside.mkdir(exist_ok=True)
    return [path.replace(aside / path.name) for path in found]


def set_aside_measured(run_dir: str | Path) -> list[Path]:
    """Set aside all records, and what was fitted on real data for them, of a run that starts anew in its directory."""
    folder = Path(run_dir)
    return set_aside(folder, [path for pattern in _MEASURED for path in folder.glob(pattern)])


def lock(run_dir: str | Path, resuming: bool, option: str = "--run_dir", wait_s: float = 10.0) -> bool:
    """Reserve ``run_dir`` and keep other processes out of it until ``unlock`` or the end of this process.

    The lock is the kernel's, so it ends with the process, however that ends. Partial files of killed processes are
    removed. Of two runs that start at once in one new directory the second is refused, because the check for another
    run is repeated under the lock.

    Args:
        wait_s: how long to wait for the lock; the data-loader workers of a killed run take some seconds to exit.

    Returns:
        True if this call took the lock, False if this process held it already or the directory cannot be locked.

    Raises:
        ConfigurationError: ``reserve`` refuses, or another process holds the lock.
    """
    folder = reserve(run_dir, resuming, option).resolve()
    if folder in _held:
        return False
    file_lock = FileLock(folder / _LOCK, timeout=wait_s)
    try:
        file_lock.acquire()
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
        reserve(run_dir, resuming, option)
    except ConfigurationError:
        file_lock.release()
        raise
    _held[folder] = file_lock
    for place in (folder, folder / "probes", folder / "checkpoints", folder / "averages"):
        remove_partials(place)
    return True


def unlock(run_dir: str | Path | None = None) -> None:
    """Release this process's lock on one directory, or on all."""
    for folder in list(_held) if run_dir is None else [Path(run_dir).resolve()]:
        if (file_lock := _held.pop(folder, None)) is not None:
            (folder / _LOCK).unlink(missing_ok=True)  # while it is still ours
            file_lock.release()


@contextmanager
def locked(run_dir: str | Path, resuming: bool, option: str = "--run_dir") -> Iterator[Path]:
    """Hold the ``lock`` on ``run_dir`` for the time of the block. A directory that was made for it and that nothing was
    written to is removed.
    """
    folder = Path(run_dir)
    new = not folder.exists()
    taken = lock(run_dir, resuming, option)
    try:
        yield folder
    finally:
        if taken:
            unlock(run_dir)
        if new and not any(folder.iterdir()):
            folder.rmdir()
