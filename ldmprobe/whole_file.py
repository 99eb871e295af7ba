"""Files that are there whole or not at all, whenever the process dies or the disk fills."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"


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
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _synchronize(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """A hidden path beside ``path`` that no other call gives, whichever process, thread or machine makes it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{PARTIAL}")


def remove_partials(folder: Path) -> None:
    """Remove what processes that were killed have left in ``folder``; only while no other one writes there."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def _synchronize(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
