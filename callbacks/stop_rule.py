"""StopRule: end training when the held-out score no longer improves beyond chance."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from ldmprobe.analysis.intervals import clustered_mean
from ldmprobe.callbacks.denoising_probe import DenoisingProbe
from ldmprobe.callbacks.probe_callback import run_directory
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.lightning_private import callbacks_of
from ldmprobe.probing.denoising_record import PROBE, bound_per_draw, image_of_draw
from ldmprobe.tracking.loggers import log_words
from ldmprobe.types import StateDict

_log = logging.getLogger(__name__)
_SURE = 0.05


class StopRule(L.Callback):
    """Ends training when the last ``patience`` denoising probes were no better than the best one.

    A probe is better if its held-out bound is surely lower, draw by draw on the same images and noise (Student's t over
    images, one-sided at 5 %), and by ``least_gain`` of the bound or more. The reason is logged, put on record for the
    report, and into W&B's summary; ``checkpoints/best.ckpt`` links to the best probe's checkpoint, where a
    ModelCheckpoint kept one of that step (``every_n_train_steps`` as often as the probe, ``save_top_k: -1``).

    Args:
        patience: probes that it waits for a better one.
        least_gain: share of the bound that counts as better.

    Attributes:
        best_step: the step of the best probe so far; None before the first.
        waited: how many probes ago that was.

    Raises:
        ConfigurationError: before training: there is no DenoisingProbe to go by.
    """

    def __init__(self, patience: int = 3, least_gain: float = 0.001) -> None:
        check_numbers("StopRule", 1, patience=patience)
        check_numbers("StopRule", 0, 1, least_gain=least_gain)
        self.patience, self.least_gain = patience, least_gain
        self.best_step: int | None = None
        self.waited = 0
        self._seen = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        probes = [callback for callback in callbacks_of(trainer) if isinstance(callback, DenoisingProbe)]
        if not probes:
            raise ConfigurationError("StopRule goes by the held-out bound; add a DenoisingProbe to the callbacks.")
        self._probe = probes[0]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step = self._probe.last_step
        if step <= self._seen or not self._probe.is_due(step):  # where a run ended that is gone on with
            return
        self._seen = step
        better = from_rank_zero(trainer, lambda: self._is_better(RecordStore(run_directory(trainer)), step))
        self.best_step, self.waited = (step, 0) if better else (self.best_step, self.waited + 1)
        if self.waited >= self.patience:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.waited >= self.patience and trainer.is_global_zero:
            self._tell(trainer)

    def _is_better(self, store: RecordStore, step: int) -> bool:
        """Return whether the probe at ``step`` is better than the best; one that left no record is not."""
        now = store.at(PROBE, step)
        if now is None or self.best_step is None:
            return now is not None
        best = store.at(PROBE, self.best_step)
        return best is None or is_better(now, best, self.least_gain)

    def _tell(self, trainer: L.Trainer) -> None:
        assert self.best_step is not None
        link = self._link(trainer)
        reason = (
            f"Stopped at step {trainer.global_step:,}: the last {self.waited} probes are no better than that of step "
            f"{self.best_step:,}, beyond chance. "
            + (f"Its checkpoint is {link}." if link else "No ModelCheckpoint has kept its checkpoint.")
        )
        _log.info(reason)
        record = ProbeRecord("stop", trainer.global_step, provenance={"summary": reason, "best_step": self.best_step})
        RecordStore(run_directory(trainer)).append(record)
        log_words(trainer.loggers, {"stopped/reason": reason})

    def _link(self, trainer: L.Trainer) -> Path | None:
        """Link ``best.ckpt`` to the checkpoint of the best probe's step; return the link, or None if there is none."""
        for callback in callbacks_of(trainer):
            folder = Path(callback.dirpath) if isinstance(callback, ModelCheckpoint) and callback.dirpath else None
            found = sorted(folder.glob(f"*step={self.best_step}.ckpt")) if folder else []
            if folder and found:
                link = folder / "best.ckpt"
                link.unlink(missing_ok=True)
                link.symlink_to(found[0].name)
                return link
        return None

    def state_dict(self) -> StateDict:
        return {"best_step": self.best_step, "waited": self.waited, "seen": self._seen}

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.best_step, self.waited, self._seen = (state_dict[name] for name in ("best_step", "waited", "seen"))


def is_better(now: ProbeRecord, best: ProbeRecord, least_gain: float) -> bool:
    """Return whether a denoising probe is better than the best so far, as ``StopRule`` has it; one that was measured
    otherwise is, so that the count begins anew.
    """
    if best.fingerprints != now.fingerprints:
        return True
    fall = bound_per_draw(best) - bound_per_draw(now)
    mean = clustered_mean(fall, image_of_draw(now))
    enough = float(mean.value) > least_gain * float(bound_per_draw(best).mean())
    return enough and float(mean.p_value) / 2 < _SURE
