"""The newest intact checkpoint of a run, by what each file says of itself: file times can be wrong."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ldmprobe.io.run_directory import is_run
from ldmprobe.lightning_private import processed_in
from ldmprobe.training.checkpoint.sharded import check_sharded_checkpoint


@dataclass(frozen=True)
class Saved:
    """A checkpoint file, and the optimizer steps and batches of training when it was written."""

    path: Path
    global_step: int
    num_batches: int


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint file, or None, after comparing every byte with its checksum."""
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
    """Return the intact checkpoint below ``folders`` that is furthest in training, and the damage of those that were
    further. Those of another run, in a directory of its own below them, do not count.

    Of two that are equally far ``last.ckpt`` is taken, because it knows of the other.
    """
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
    """Return the checkpoint that is further in training than ``path``, a ``last.ckpt``, among those beside it called
    ``last-v1.ckpt`` and so on.

    Lightning writes such a file after the folder has been renamed.
    """
    if path.name != "last.ckpt":
        return None
    found = []
    for other in (path, *path.parent.glob("last-v*.ckpt")):
        with suppress(Exception):  # damaged; whoever reads it is told
            found.append(Saved(other, *_read_progress(other)))
    furthest = max(found, key=lambda saved: (saved.global_step, saved.path == path), default=None)
    return None if furthest is None or furthest.path == path else furthest


def set_aside_later(folders: Iterable[Path], after: int) -> list[Path]:
    """Rename checkpoints of later steps than ``after`` to ``….superseded``, and return them: a run that goes on from
    there has left them, and they would be taken for its last.
    """
    later = []
    for path in _checkpoints(folders):
        with suppress(Exception):  # damaged ones are told of where the last is looked for
            if _read_progress(path)[0] > after:
                later.append(path)
    return [path.rename(path.with_name(f"{path.name}.superseded")) for path in later]


def _checkpoints(folders: Iterable[Path]) -> list[Path]:
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.ckpt")):
            sharded = path.is_dir()
            within_sharded = any(parent.suffix == ".ckpt" for parent in path.parents)
            of_another_run = any(is_run(folder / parent) for parent in list(path.relative_to(folder).parents)[:-1])
            # Lightning saves hpc_ckpt_N.ckpt from within a signal handler, perhaps in the middle of an optimizer step.
            if not (sharded or path.is_file()) or within_sharded or of_another_run or path.name.startswith("hpc_ckpt_"):
                continue
            if path.resolve() not in found or not path.is_symlink():
                found[path.resolve()] = path
    return list(found.values())


def _read_progress(path: Path) -> tuple[int, int]:
    """Return the optimizer steps and batches of a checkpoint, without reading its tensors; a sharded one has them in
    its ``meta.pt``.
    """
    if path.is_dir():
        if not (path / ".metadata").is_file():
            raise FileNotFoundError(f"{path} lacks its .metadata")
        path = path / "meta.pt"
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return int(checkpoint["global_step"]), processed_in(checkpoint)
