"""Checkpoints on disk: written whole or not at all, checked when they are read, and never unpickled blindly."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_write
from ldmprobe.training.sharded_checkpoint import check_sharded_checkpoint


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, but synchronised to the disk before they take their name, streamed rather than copied in memory, and
    loaded with ``weights_only`` unless that is set to False. Addresses of other file systems (``s3://…``) are left to Lightning.

    Raises:
        ConfigurationError: the disk is full or cannot be written (what was there before is kept); a checkpoint that holds more
            than tensors and plain values.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        failed: OSError | None = None
        try:
            with atomic_write(Path(path)) as file:
                writer = _Remembering(file)
                try:
                    torch.save(checkpoint, writer)  # type: ignore[arg-type]
                finally:
                    failed = writer.error
        except (OSError, RuntimeError) as error:
            if (cause := failed or error) is not None and isinstance(cause, OSError):
                raise ConfigurationError(
                    f"{path} could not be written: {cause.strerror}. The checkpoints before it are kept; make room, then go on with "
                    "`--ckpt_path last`."
                ) from error
            raise

    def load_checkpoint(
        self,
        path: Any,
        map_location: Callable | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        try:
            return super().load_checkpoint(path, map_location, weights_only is not False)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            raise ConfigurationError(
                f"{path} holds more than tensors and plain values{f' ({named[1]})' if named else ''}: loading it may run code that it "
                "brings along. If you trust where it comes from, add `--weights_only false`."
            ) from error


class _Remembering:
    """A file that remembers the OSError which torch's writer hides behind a RuntimeError of its own."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


# --- which to go on from ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    """A checkpoint file and where in training it was written, by its own account: file times can be wrong."""

    path: Path
    global_step: int
    num_batches: int


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None: every byte of it is read and compared with its CRC."""
    try:
        if path.is_dir():
            _read_progress(path)
            check_sharded_checkpoint(path)
            return None
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"{broken.partition('/')[2]} does not match its checksum"
    except Exception as error:  # noqa: BLE001 (zipfile, zlib and torch raise many kinds, all meaning the same)
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return None


def newest_intact(folders: Iterable[Path]) -> tuple[Saved | None, dict[Path, str]]:
    """The checkpoint below ``folders`` that is furthest in training and intact, and what is wrong with those that would have been
    taken before it. Of two that are equally far, ``last.ckpt`` is taken: it knows of the other."""
    readable, broken = [], {}
    for path in _checkpoints(folders):
        try:
            readable.append(Saved(path, *_read_progress(path)))
        except Exception as error:  # noqa: BLE001 (as above)
            broken[path] = damage(path) or str(error).partition("\n")[0]

    def rank(saved: Saved) -> tuple[int, int, bool, str]:
        return saved.global_step, saved.num_batches, saved.path.name.startswith("last"), saved.path.name

    for saved in sorted(readable, key=rank, reverse=True):
        if (fault := damage(saved.path)) is None:
            return saved, broken
        broken[saved.path] = fault
    return None, broken


def newer_last(path: Path) -> Saved | None:
    """Of the checkpoints beside ``last.ckpt`` that are called so, too (``last-v1.ckpt``: Lightning's, of a folder that had been renamed),
    the one that is furthest in training, if it is further than ``path``."""
    if path.name != "last.ckpt":
        return None
    found = []
    for other in (path, *path.parent.glob("last-v*.ckpt")):
        with suppress(Exception):  # damaged; whoever reads it is told
            found.append(Saved(other, *_read_progress(other)))
    furthest = max(found, key=lambda saved: (saved.global_step, saved.path == path), default=None)
    return None if furthest is None or furthest.path == path else furthest


def _checkpoints(folders: Iterable[Path]) -> list[Path]:
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.ckpt")):
            sharded = path.is_dir()
            within_sharded = any(parent.suffix == ".ckpt" for parent in path.parents)
            # Lightning saves hpc_ckpt_N.ckpt from within a signal handler, perhaps in the middle of an optimiser step.
            if not (sharded or path.is_file()) or within_sharded or path.name.startswith("hpc_ckpt_"):
                continue
            if path.resolve() not in found or not path.is_symlink():
                found[path.resolve()] = path
    return list(found.values())


def _read_progress(path: Path) -> tuple[int, int]:
    """Optimiser steps and batches of a checkpoint, without reading its tensors; of a sharded one, from its ``meta.pt``."""
    if path.is_dir():
        if not (path / ".metadata").is_file():
            raise FileNotFoundError(f"{path} lacks its .metadata")
        path = path / "meta.pt"
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    return int(checkpoint["global_step"]), int(progress["processed"])
