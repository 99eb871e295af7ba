"""Snapshots of power-function averages in a run's directory, and the average of any length made of them afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ldmprobe.analysis.power_averages import Profile, gamma_of, mixture
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_write
from ldmprobe.training.power_ema import PowerEMA
from ldmprobe.types import StateDict

FOLDER, STATE = "averages", "ldmprobe.PostHocEMA"  # in a run's directory; among a checkpoint's callbacks
_LARGEST_ERROR = 0.1  # of a profile: the weights' own is some thirtieth of it


@dataclass(frozen=True)
class EMASnapshots:
    """The folder ``run_dir/averages``: a safetensors file after every so many updates, all lengths in it.

    There are at most ``at_most`` files, evenly spaced: when there would be more, every second one is removed and the
    distance doubles. Which remain depends on the number of updates alone, so that a resumed run has the same.
    """

    run_dir: Path
    every: int = 1
    at_most: int = 32

    @property
    def folder(self) -> Path:
        return self.run_dir / FOLDER

    def stride(self, updates: int) -> int:
        """Return the distance between snapshots when there have been so many updates."""
        stride = self.every
        while updates // stride > self.at_most:
            stride *= 2
        return stride

    def is_due(self, updates: int) -> bool:
        return updates % self.stride(updates) == 0

    def write(self, averages: PowerEMA) -> None:
        """Write a snapshot, whole or not at all, and remove those that are one too many."""
        tensors = {
            f"{length:g}/{name}": value.contiguous()
            for length, weights in averages.weights.items()
            for name, value in weights.items()
        }
        with atomic_write(self.folder / f"{averages.updates:08d}.safetensors") as file:
            file.write(save(tensors))
        stride = self.stride(averages.updates)
        for updates, path in self.paths().items():
            if updates % stride:
                path.unlink()

    def remove_later(self, than: int) -> None:
        """Remove snapshots after more updates than these: a run that goes on from there takes them anew."""
        for updates, path in self.paths().items():
            if updates > than:
                path.unlink()

    def paths(self) -> dict[int, Path]:
        """Return the files by their number of updates, in this order."""
        found = {int(path.stem): path for path in self.folder.glob("*.safetensors") if path.stem.isdecimal()}
        return dict(sorted(found.items()))


def averaged_weights(checkpoint: str | Path, length: float, content: StateDict | None = None) -> dict[str, Tensor]:
    """Return the average of this length at a checkpoint, by the parameters' names in the network: the averages that the
    checkpoint itself holds and the snapshots before it in its run's directory, mixed (``analysis/power_averages.py``).

    Args:
        checkpoint: the file, in a run's directory or in its ``checkpoints``.
        length: σ_rel.
        content: what the checkpoint holds, where that has been read.

    Raises:
        ConfigurationError: it was trained without PostHocEMA, its snapshots are gone or not readable, or they do not
            reach as far as this length.
    """
    gamma_of(length)
    if content is None:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    state = content.get("callbacks", {}).get(STATE)
    if state is None:
        raise ConfigurationError(
            f"{checkpoint} was trained without averages of which others can be made; train with PostHocEMA among the "
            "callbacks, or leave out the length."
        )
    updates = int(state["updates"])
    snapshots = {count: path for count, path in _beside(Path(checkpoint)).items() if count < updates}
    lengths = [float(each) for each in state["weights"]]
    stored = [Profile(count, each) for count in (*snapshots, updates) for each in lengths]
    found = mixture(Profile(updates, length), stored)
    if not found.error < _LARGEST_ERROR:
        raise ConfigurationError(
            f"An average of length {length:g} cannot be made of those of {checkpoint} and the {len(snapshots)} "
            f"snapshots before it: {found.error:.0%} of its profile would be missing, at most {_LARGEST_ERROR:.0%} may "
            f"be. Those of length {', '.join(state['weights'])} are there; for others keep the checkpoint in its run's "
            f"directory, with the folder {FOLDER!r}, and train with a smaller `every_n_steps` of PostHocEMA."
        )
    shares = iter(found.coefficients)
    mixed: dict[str, Tensor] = {}
    for path in (*snapshots.values(), None):
        for each in state["weights"]:
            share, own = float(next(shares)), state["weights"][each]
            weights = own if path is None else _read(path, each, own)
            for name, value in weights.items():
                mixed[name] = mixed.get(name, torch.zeros_like(value, dtype=torch.float64)).add_(value, alpha=share)
    return {name: value.to(state["weights"][each][name].dtype) for name, value in mixed.items()}


def _beside(checkpoint: Path) -> dict[int, Path]:
    """Return the snapshots of the run directory that the checkpoint lies in; none elsewhere."""
    for run_dir in checkpoint.absolute().parents[:2]:
        if paths := EMASnapshots(run_dir).paths():
            return paths
    return {}


def _read(path: Path, length: str, like: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(f"{length}/{name}") for name in like}
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"{path} is not a readable snapshot of this run's averages: {error}") from error
    for name, value in found.items():
        if value.shape != like[name].shape:
            raise ConfigurationError(
                f"{path} is a snapshot of another network: its {name} has shape {tuple(value.shape)}, the "
                f"checkpoint's {tuple(like[name].shape)}."
            )
    return found
