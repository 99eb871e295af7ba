"""PostHocEMA: averages of weights, kept so that one of any length can be made of them after training."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import lightning as L
from safetensors import SafetensorError

from ldmprobe.analysis.power_averages import gamma_of
from ldmprobe.callbacks.probe_callback import run_directory
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.run_directory import reserve
from ldmprobe.models.diffusion_model import trained_network_of
from ldmprobe.training.ema_snapshots import STATE, EMASnapshots
from ldmprobe.training.power_ema import PowerEMA
from ldmprobe.training.sharding import check_not_sharded
from ldmprobe.types import StateDict

_log = logging.getLogger(__name__)


class PostHocEMA(L.Callback):
    """Keeps power-function averages of the trained network (Karras et al., 2024, arXiv:2312.02696, section 3) beside
    whatever average the module has itself, and puts snapshots of them into ``averages`` in the run's directory. Nothing
    in training depends on them.

    Afterwards ``ldmprobe probe``, ``sample`` and ``export`` take ``--ema-length``: an average of any length, about 0.03
    to 0.25, made of those that were kept.

    Costs ``2 × lengths`` passes over the parameters a step, their size times ``lengths`` in memory and in each
    checkpoint, and that times ``max_snapshots`` on disk.

    Args:
        lengths: σ_rel of the averages that are kept: the width of an average's profile, as a share of all steps so far.
        every_n_steps: optimizer steps between snapshots, while there are few.
        max_snapshots: how many there are at most; when there would be more, every second one is removed and the
            distance doubles.

    Raises:
        ConfigurationError: before training: a length out of range; parameters are sharded; the checkpoint that a run
            goes on from has no such averages, or of other lengths.
    """

    def __init__(
        self, lengths: Sequence[float] = (0.05, 0.10), every_n_steps: int = 200, max_snapshots: int = 32
    ) -> None:
        check_numbers("PostHocEMA", 1, every_n_steps=every_n_steps)
        check_numbers("PostHocEMA", 8, max_snapshots=max_snapshots)
        if not lengths or len({f"{length:g}" for length in lengths}) < len(lengths):
            raise ConfigurationError(f"PostHocEMA got lengths {list(lengths)}; expected some, each once.")
        for length in lengths:
            gamma_of(length)
        self.lengths = tuple(float(length) for length in lengths)
        self.every_n_steps, self.max_snapshots = every_n_steps, max_snapshots
        self.failures = 0
        self._averages: PowerEMA | None = None
        self._resumed: StateDict | None = None
        self._resuming = False
        self._seen_step = 0

    @property
    def state_key(self) -> str:
        return STATE

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: StateDict) -> None:
        self._resuming = True
        if STATE not in checkpoint.get("callbacks", {}):
            raise ConfigurationError(
                "PostHocEMA was not among the callbacks when this checkpoint was saved, and an average cannot begin in "
                "the middle of training; leave it out, or start anew."
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        check_not_sharded(trainer.strategy, "PostHocEMA")
        trained_network_of(pl_module)
        from_rank_zero(trainer, lambda: reserve(run_directory(trainer), self._resuming))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen_step = trainer.global_step
        self._averages = PowerEMA(trained_network_of(pl_module), self.lengths)
        if self._resumed is not None:
            self._averages.load_state_dict(self._resumed)
            self._resumed = None
        if trainer.is_global_zero:
            self._snapshots(trainer).remove_later(than=self._averages.updates)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen_step or self._averages is None:
            return
        self._seen_step = trainer.global_step
        self._averages.update(trained_network_of(pl_module))
        snapshots = self._snapshots(trainer)
        if trainer.is_global_zero and snapshots.is_due(self._averages.updates):
            self._write(snapshots, self._averages)

    def _snapshots(self, trainer: L.Trainer) -> EMASnapshots:
        return EMASnapshots(run_directory(trainer), self.every_n_steps, self.max_snapshots)

    def _write(self, snapshots: EMASnapshots, averages: PowerEMA) -> None:
        """Write a snapshot; a full disk does not end training."""
        try:
            snapshots.write(averages)
        except (OSError, SafetensorError) as error:
            self.failures += 1
            _log.error(
                "PostHocEMA could not write its snapshot at step %d (%s); training goes on.",
                averages.updates,
                error,
                exc_info=self.failures == 1,
            )

    def state_dict(self) -> StateDict:
        return {} if self._averages is None else self._averages.state_dict()

    def load_state_dict(self, state_dict: StateDict) -> None:
        self._resumed = state_dict
