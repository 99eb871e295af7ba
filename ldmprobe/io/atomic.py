"""Atomic writes: a file or folder is there whole or not at all, whenever the process dies or the disk fills."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
_FOLDER = re.compile(rf"\..+\.[0-9a-f]{{12}}\{PARTIAL}")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends; if the block raises, ``path`` stays as it was.

    The file is written beside ``path`` under a unique name, so several processes and threads may write one path at a
    time and the last one wins. It is synchronized to disk before it is renamed, and the folder afterwards, so it then
    survives a power cut. A process that is killed on the way leaves a hidden file that ends in ``.partial``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with _held_file(partial) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _synchronize(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Create a folder that becomes ``path``, which must be absent or empty, when the block ends; if the block raises,
    nothing is left.

    Leftovers of killed processes beside ``path`` are removed first.
    """
    remove_partials(path.parent, folders=True)
    partial = partial_path(path)
    partial.mkdir(parents=True)
    with _held(partial):
        try:
            yield partial
            partial.replace(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def partial_path(path: Path) -> Path:
    """Return a hidden path beside ``path`` that is unique to this call, across processes, threads and machines."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{PARTIAL}")


def remove_partials(folder: Path, name: str = "*", folders: bool = False) -> None:
    """Remove the partial files, or folders, of killed processes from ``folder``, for targets whose name matches
    ``name``.

    What a living process still writes to stays: it holds a lock, which the kernel releases when the process dies.
    """
    for path in folder.glob(f".{name}{PARTIAL}"):
        if path.is_dir() != folders or (folders and not _FOLDER.fullmatch(path.name)):
            continue
        try:
            with _held(path, wait=False):
                shutil.rmtree(path, ignore_errors=True) if folders else path.unlink(missing_ok=True)
        except OSError:  # a living process has it, or it is gone
            continue


@contextmanager
def _held_file(path: Path) -> Iterator[BinaryIO]:
    """Create a locked file, again if another process removes it before the lock is held."""
    while True:
        with path.open("wb") as file:
            _lock(file.fileno())
            if os.fstat(file.fileno()).st_nlink > 0:
                yield file
                return


@contextmanager
def _held(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock on a file or folder.

    Raises:
        OSError: another process holds it (unless ``wait``), or there is no such path.
    """
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor, wait)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, wait: bool = True) -> None:
    """Lock an open file until it is closed, where the file system has locks; without ``wait``, OSError if it has none
    or another process has it.
    """
    try:
        if os.name == "nt":
            raise OSError("no such locks")
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if not wait:
            raise


def _synchronize(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
