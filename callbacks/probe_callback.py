"""ProbeCallback: when probes run during training, and where their records go. Each probe is a small subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.diffusion_model import DiffusionModel, diffusion_model_of
from ldmprobe.probing.probe import Progress, Ranks, progress_bar
from ldmprobe.probing.record import ProbeRecord
from ldmprobe.tracking.loggers import log_record
from ldmprobe.tracking.run_directory import claim
from ldmprobe.tracking.store import RecordStore


class ProbeCallback(L.Callback, ABC):
    """Runs :meth:`probe` before the first optimiser step, every ``every_n_steps`` of them, and at the end; puts the record on
    disk in ``trainer.default_root_dir/probes``, then hands it to the loggers.

    Steps are optimiser steps (``trainer.global_step``), whatever the gradient accumulation.

    Args:
        every_n_steps: at least 1.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ConfigurationError(f"{type(self).__name__} got every_n_steps {every_n_steps}; expected at least 1.")
        self.every_n_steps = every_n_steps
        self._last_step = -1
        self._resuming = False

    @abstractmethod
    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord | None:
        """One record, the same on every rank; called on all of them."""

    def check(self, model: DiffusionModel) -> None:
        """Raise ConfigurationError if ``model`` cannot be probed as configured; called before training."""

    # --- when ------------------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._resuming = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            claim(trainer.default_root_dir, self._resuming)
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if sum(type(callback) is type(self) for callback in callbacks) > 1:
            raise ConfigurationError(
                f"There are several {type(self).__name__} callbacks, whose records would be mixed up; keep one. (A configuration after "
                "another adds to its callbacks with `callbacks+:` and replaces them with `callbacks:`.)"
            )
        self.check(diffusion_model_of(pl_module))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._run(trainer, pl_module)
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._last_step and step % self.every_n_steps == 0:
            self._run(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._last_step:
            self._run(trainer, pl_module)

    # --- what happens to a record ----------------------------------------------------------------------------------

    def _run(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step
        ranks = Ranks(
            trainer.global_rank, trainer.world_size, lambda tensor: trainer.strategy.reduce(tensor, reduce_op="sum")
        )
        record = self.probe(trainer, pl_module, ranks)
        if record is not None and trainer.is_global_zero:
            store = RecordStore(trainer.default_root_dir)
            store.append(record)
            if trainer.loggers:
                log_record(trainer.loggers, record, lambda: store.read(record.probe))

    @contextmanager
    def progress(self, trainer: L.Trainer) -> Iterator[Progress]:
        """A progress bar with the time left, where the Trainer shows one; ends the probe at a SIGTERM."""
        shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        with progress_bar(type(self).__name__, shown) as show:

            def update(done: int, total: int) -> None:
                show(done, total)
                if trainer.world_size == 1 and trainer.received_sigterm:
                    raise SIGTERMException

            yield update


def run_directory(trainer: L.Trainer) -> Path:
    """Where everything of a run is written."""
    return Path(trainer.default_root_dir)
