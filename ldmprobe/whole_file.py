"""Files that are there whole or not at all, whenever the process dies or the disk fills."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
_FOLDER = re.compile(rf"\..+\.[0-9a-f]{{12}}\{PARTIAL}")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes ``path``'s place at once when the block ends; if it raises, ``path`` stays as it was.

    Written beside ``path`` under a name of its own, so that several processes and threads may write one path at a time and the
    last one wins; synchronized to the disk, renamed, and the folder synchronized too: after that it outlives a power cut. A
    process that is killed on the way leaves a hidden file that ends in ``.partial``.
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
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes ``path``'s place, where there is none or an empty one, when the block ends; if it raises, nothing is
    left. What processes that were killed have left of other such folders beside ``path`` is removed first."""
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
    """A hidden path beside ``path`` that no other call gives, whichever process, thread or machine makes it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{PARTIAL}")


def remove_partials(folder: Path, name: str = "*", folders: bool = False) -> None:
    """Remove what processes that were killed have left in ``folder`` of files, or folders, whose name matches ``name``; what a living
    one still writes to stays: it holds a lock, which the kernel takes from it when it dies."""
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
    """A new file, under a lock. One that another process removes before the lock is there is made again."""
    while True:
        with path.open("wb") as file:
            with suppress(OSError):  # a file system without locks
                _lock(file.fileno())
            if os.fstat(file.fileno()).st_nlink > 0:
                yield file
                return


@contextmanager
def _held(path: Path, wait: bool = True) -> Iterator[None]:
    """Have a lock on a file or folder.

    Raises:
        OSError: it cannot be had (with ``wait``, only if there is no such path).
    """
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if wait:
            with suppress(OSError):
                _lock(descriptor)
        else:
            _lock(descriptor, wait=False)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, wait: bool = True) -> None:
    """Lock an open file until it is closed; OSError where that cannot be, without ``wait`` because another has it."""
    if os.name == "nt":
        raise OSError("no such locks")
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _synchronize(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
