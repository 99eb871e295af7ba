"""TrainingClock: what training has cost so far, without what only looks at it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import lightning as L
import torch
from torch import nn

from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import ProbeRecord
from ldmprobe.lightning_private import callbacks_of
from ldmprobe.probing.probe import Ranks
from ldmprobe.types import StateDict

METRICS = (
    Metric(
        "training_seconds", "Seconds of training",
        "What the weights of that step have cost, without probes, validation, checkpoints and the reading of batches.",
        "s", good="lower", shown="headline",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class WholeModule:
    """A module in training, whatever it trains."""

    network: nn.Module


@runtime_checkable
class _CostsTime(Protocol):
    """A callback that may be part of training, and what it has cost so far."""

    part_of_training: bool
    cost_seconds: float


class TrainingClock(ProbeCallback[WholeModule]):
    """Seconds of training, for comparing methods at equal cost: from the start to the end of every batch (network,
    optimizer, moving average, an adaptive sampler's own work), and the ``cost_seconds`` of callbacks that are part of
    training, such as TimestepBalancer. Probes, validation, checkpoints and the reading of batches are left out: they
    cost every method the same.

    On a CPU these are CPU seconds of the process, all its threads together, which a machine that is busy with other
    things hardly changes; with one thread they are the wall time of an idle one. On a GPU they are wall seconds, its
    queue empty at both ends.

    A record "clock" with the scalar ``training_seconds`` is what the weights of that step have cost. A resumed run
    counts on from its checkpoint.

    Args:
        every_n_steps: optimizer steps between records; those of the probes that are to be read against time.

    Raises:
        ConfigurationError: before training: it stands after a probe among the callbacks, and would count its passes.
    """

    records = "clock"

    def __init__(self, every_n_steps: int = 500) -> None:
        super().__init__(every_n_steps)
        self._seconds = self._began = 0.0

    def subject(self, pl_module: L.LightningModule) -> WholeModule:
        return WholeModule(pl_module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        callbacks = callbacks_of(trainer)
        before = [type(c).__name__ for c in callbacks[: callbacks.index(self)] if isinstance(c, ProbeCallback)]
        if before:
            raise ConfigurationError(
                f"TrainingClock stands after {', '.join(before)} among the callbacks and would count what is not "
                "training; put it first."
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        self._began = seconds_spent(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self._seconds += seconds_spent(pl_module.device) - self._began
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        callbacks = callbacks_of(trainer)
        others = sum(c.cost_seconds for c in callbacks if isinstance(c, _CostsTime) and c.part_of_training)
        provenance = {"device": str(pl_module.device), "num_threads": torch.get_num_threads()}
        return ProbeRecord(
            self.records,
            trainer.global_step,
            {"training_seconds": self._seconds + others},
            metrics=METRICS,
            provenance=provenance,
        )

    def state_dict(self) -> StateDict:
        return {"seconds": self._seconds}

    def load_state_dict(self, state_dict: StateDict) -> None:
        self._seconds = state_dict["seconds"]


def seconds_spent(device: torch.device) -> float:
    """A clock for work on ``device``: CPU seconds of the process, or wall seconds with the GPU's queue empty."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
