"""What a ModelCheckpoint remembers of its files follows them: a run directory may have been renamed or copied between
two starts.

Lightning keeps absolute paths in its checkpoints. In another folder it forgets them, takes ``last.ckpt`` for somebody
else's and saves to ``last-v1.ckpt`` beside it: the old weights then have the name that everybody reads.
"""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint

from ldmprobe.types import PlainValues, StateDict


def paths_here(callback: ModelCheckpoint, state: StateDict | None, alone: bool) -> PlainValues:
    """Return what is to be changed in ``state``, a ModelCheckpoint's of a checkpoint that is gone on with, so that it
    is about the files in the folder that the callback saves to now. Files that are not there stay as they are.

    Args:
        state: None where the checkpoint has none of this callback, as after a change of its settings.
        alone: whether no other callback writes a ``last.ckpt`` in that folder.
    """
    folder = Path(str(callback.dirpath))
    changes: PlainValues = {}
    if state is not None and state.get("dirpath") != callback.dirpath:
        changes = _moved(state, folder, callback.mode)
    last = folder / f"{callback.CHECKPOINT_NAME_LAST}{callback.FILE_EXTENSION}"
    if callback.save_last and alone and last.exists():
        changes["last_model_path"] = str(last)
    return changes


def _moved(state: StateDict, folder: Path, mode: str) -> PlainValues:
    """Nothing where no file of those that the state names is in ``folder``: another run goes on from this one's
    checkpoint.
    """
    names = [name for name in ("last_model_path", "best_model_path") if _is_in(state[name], folder)]
    scores = {_here(path, folder): score for path, score in state["best_k_models"].items() if _is_in(path, folder)}
    if not names and not scores:
        return {}
    changes: PlainValues = {name: _here(state[name], folder) for name in names}
    changes |= {"dirpath": str(folder), "best_k_models": scores}
    worst = _here(state["kth_best_model_path"], folder)
    if scores and worst not in scores:
        worst = (max if mode == "min" else min)(scores, key=lambda path: float(scores[path]))
        changes["kth_value"] = scores[worst]
    return changes | {"kth_best_model_path": worst if scores else ""}


def _here(path: str, folder: Path) -> str:
    return str(folder / Path(path).name)


def _is_in(path: str, folder: Path) -> bool:
    """Return whether there is a file of that name."""
    return bool(path) and (folder / Path(path).name).exists()
