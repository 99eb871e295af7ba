"""Observation: what is written down of a run that is audited, batch by batch and around every hook of a probe."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
from torch import nn

from ldmprobe.audit.ledger import Ledger, differences, in_words, take_ledger
from ldmprobe.callbacks import ProbeCallback, ReportWriter
from ldmprobe.io.digest import digest
from ldmprobe.lightning_private import batches_begun
from ldmprobe.tracking.scalars import OF_PROBES


def is_probe(kind: type) -> bool:
    """Return whether callbacks of this class look on without being part of training."""
    if issubclass(kind, ProbeCallback):
        return not kind.part_of_training
    return issubclass(kind, ReportWriter)


@dataclass
class Disturbance:
    """A hook of a probe after which something was not as before."""

    probe: str
    hook: str
    step: int
    changed: list[str]

    def __str__(self) -> str:
        more = f" and {len(self.changed) - 1} more" if len(self.changed) > 1 else ""
        return f"{self.probe} changed {self.changed[0]}{more} (step {self.step}, in {self.hook})"


@dataclass
class Observation:
    """The observations of one run.

    Attributes:
        ledgers: (where in training, the state there).
        metrics: the logged metrics that are not a probe's, by name, then by step.
        probe_runs: how often each probe ran.
        failures: what went wrong in probes.
        disturbances: what the probes' hooks changed.
        bytes_bracketed: compared before and after the probes' hooks.
    """

    ledgers: list[tuple[str, Ledger]] = field(default_factory=list)
    metrics: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    probe_runs: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    disturbances: list[Disturbance] = field(default_factory=list)
    bytes_bracketed: int = 0


class Recorder(L.Callback):
    """The state after every batch, when all other callbacks have had their turn."""

    def __init__(self, seen: Observation, averages: dict[str, nn.Module]) -> None:
        self._seen, self._averages = seen, averages
        self._batch: Ledger = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._record("before the first batch", trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        self._batch = {"data": {"batch": digest(batch)}}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        number = batches_begun(trainer) + 1
        self._record(f"step {trainer.global_step}, after batch {number}", trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batch = {}
        self._record(f"step {trainer.global_step}, at the end of training", trainer, pl_module)

    def _record(self, place: str, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen.ledgers.append((place, self._batch | take_ledger(trainer, pl_module, self._averages)))


def bracket(callback: L.Callback, seen: Observation, averages: dict[str, nn.Module]) -> None:
    """Compare the state of training before and after each hook that ``callback`` has, and count its runs and
    failures.
    """
    kind = type(callback)
    name = kind.__name__

    def bracketed(hook_name: str, hook: Callable[..., object]) -> Callable[..., object]:
        def run(trainer: L.Trainer, pl_module: L.LightningModule, *args: object, **kwargs: object) -> object:
            before = take_ledger(trainer, pl_module, averages)
            try:
                return hook(trainer, pl_module, *args, **kwargs)
            finally:
                after = take_ledger(trainer, pl_module, averages)
                seen.bytes_bracketed += sum(item.num_bytes for items in before.values() for item in items.values())
                changed = [in_words(*which) for which in differences(before, after)]
                if changed:
                    seen.disturbances.append(Disturbance(name, hook_name, trainer.global_step, changed))

        return run

    def counted(work: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            seen.probe_runs[name] = seen.probe_runs.get(name, 0) + 1
            try:
                return work(*args, **kwargs)
            except Exception as error:
                seen.failures.setdefault(name, f"{type(error).__name__}: {error}")
                raise

        return run

    seen.probe_runs[name] = 0
    main = "probe" if isinstance(callback, ProbeCallback) else "on_fit_end"
    setattr(callback, main, counted(getattr(callback, main)))
    for hook_name in dir(L.Callback):
        if hook_name.startswith("on_") and getattr(kind, hook_name) is not getattr(L.Callback, hook_name):
            setattr(callback, hook_name, bracketed(hook_name, getattr(callback, hook_name)))


def logged_metrics(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return what a CSVLogger wrote of training, without the metrics of probes: name → step → values."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in folder.rglob("metrics.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name != "step" and not name.startswith(OF_PROBES):
                        found.setdefault(name, {}).setdefault(row["step"], []).append(value)
    return found
