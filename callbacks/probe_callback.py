"""ProbeCallback: when probes run during training, and where their records go. Each probe is a small subclass."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic, Protocol, TypeVar, cast, get_args
from weakref import WeakKeyDictionary

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from ldmprobe.callbacks.monitored import check_monitors, show_metrics
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.callbacks.superseded import set_aside_recorded
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.run_directory import lock, unlock
from ldmprobe.io.store import RecordStore
from ldmprobe.lightning_private import callbacks_of, is_dry_run, logger_step
from ldmprobe.models.diffusion_model import diffusion_model_of
from ldmprobe.probing.non_finite import first_not_finite
from ldmprobe.probing.probe import Progress, Ranks, Running, plain_stderr, progress_bar
from ldmprobe.tracking.history import RunningHistory
from ldmprobe.tracking.loggers import log_record, log_scalars
from ldmprobe.tracking.scalars import Detail, all_metrics
from ldmprobe.types import StateDict

_log = logging.getLogger(__name__)
_METRICS = "ldmprobe.ProbeCallback"  # in a checkpoint
_RANGES = {  # of arguments that callbacks share; what an analysis needs at least, it says itself
    **dict.fromkeys(("num_samples", "num_steps", "num_draws"), (1, 10_000_000)),
    **dict.fromkeys(("num_images", "num_reference", "num_real", "batch_size"), (1, inf)),
    "seed": (0, inf),
}
_thrown_away: WeakKeyDictionary[L.Trainer, TemporaryDirectory[str]] = WeakKeyDictionary()


class Subject(Protocol):
    """The part of a module that a probe looks at: its network, and more that the probe knows of."""

    @property
    def network(self) -> nn.Module: ...


S = TypeVar("S", bound=Subject)


class ProbeCallback(L.Callback, ABC, Generic[S]):
    """Runs ``probe`` before the first optimizer step, every ``every_n_steps`` of them, and at the end; puts the record
    on disk in ``trainer.default_root_dir/probes``, then hands it to the loggers.

    Steps are optimizer steps (``trainer.global_step``), whatever the gradient accumulation. Where a batch takes
    several, as with two optimizers, a probe runs after the batch in which a multiple of ``every_n_steps`` was reached
    or passed. Records are of optimizer steps there, too; loggers are told the number of batches, which is the step that
    Lightning logs under with manual optimization.

    Records of later steps than the checkpoint that a run goes on from are moved to ``superseded`` and taken anew.

    The metrics of the last probe are also in ``trainer.callback_metrics`` on every rank, from before the first
    optimizer step on, so that ``ModelCheckpoint(monitor="probe_quality/fid")`` and EarlyStopping go by them; a resumed
    run has them from its checkpoint. What looks at them at steps at which the probe does not run is refused: it would
    take an old value for a new one.

    A probe that raises, or whose record cannot be written, does not end training: the first error is logged with its
    traceback, later ones in a line, and all are counted, in ``failures`` and for the loggers in
    ``probe_failures/<Probe>``. Raised all the same are a ConfigurationError; any error before the first optimizer step,
    when nothing is lost yet; and, with several processes, an error in ``probe``, since the other ranks would wait for
    this one for ever.

    Args:
        every_n_steps: at least 1.
        detail: what loggers are sent: "bands", headlines and curves by band of log-SNR, or "levels", every level of
            every curve besides.

    Attributes:
        failures: how many probes have failed since training was started or resumed.
        part_of_training: whether what is found is meant to change training, so that nothing is looked for at its end;
            of the class.
    """

    part_of_training = False

    def __init__(self, every_n_steps: int = 500, detail: Detail = "bands") -> None:
        if detail not in get_args(Detail):
            raise ConfigurationError(f"{type(self).__name__} got detail {detail!r}; expected 'bands' or 'levels'.")
        check_numbers(type(self).__name__, 1, every_n_steps=every_n_steps)
        self.every_n_steps, self.detail = every_n_steps, detail
        self.failures = 0
        self._nan_told = False
        self._last_step = -1
        self._seen_step = 0
        self._steps_of_batch = 1
        self._resuming = self._holds_lock = False
        # Of the last probe but one at the end of training, which an unbroken run does not have:
        self._metrics: dict[str, float] = {}

    @abstractmethod
    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord | None:
        """One record, the same on every rank; called on all of them."""

    def subject(self, pl_module: L.LightningModule) -> S:
        """Return the part of the module that this probe looks at: its DiffusionModel, unless a probe says otherwise.

        Raises:
            ConfigurationError: the module has none.
        """
        return cast("S", diffusion_model_of(pl_module))

    def conclude(self, trainer: L.Trainer) -> dict[str, float]:
        """Draw conclusions from the records so far, the latest on disk among them; called on every rank. Return more
        metrics, the same on every rank.
        """
        return {}

    @property
    def last_step(self) -> int:
        """The training step of the last probe; −1 before the first."""
        return self._last_step

    @property
    def records(self) -> str:
        """The name of the records, which is that of their files; no two callbacks of a Trainer may share it."""
        return type(self).__name__

    def check(self, model: S) -> None:
        """Raise ConfigurationError if ``model``, the subject, cannot be probed as configured; before training."""

    # --- when ------------------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: StateDict) -> None:
        self._resuming = True
        self._metrics = checkpoint.get(_METRICS, {}).get(self.records, {})

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: StateDict) -> None:
        checkpoint.setdefault(_METRICS, {})[self.records] = dict(self._metrics)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._holds_lock = from_rank_zero(trainer, lambda: lock(run_directory(trainer), self._resuming))
        self._history = RunningHistory(RecordStore(run_directory(trainer)))
        alike = [type(callback).__name__ for callback in probes_of(trainer) if callback.records == self.records]
        if len(alike) > 1:
            raise ConfigurationError(
                f"Records of {' and '.join(alike)} ({self.records}) would be mixed up; keep one of them, or give a "
                "sampling probe another `name`. (A configuration after another adds to its callbacks with "
                "`callbacks+:` and replaces them with `callbacks:`.)"
            )
        for name, (at_least, at_most) in _RANGES.items():
            check_numbers(type(self).__name__, at_least, at_most, **{name: vars(self).get(name)})
        self.check(self.subject(pl_module))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        set_aside_recorded(trainer, run_directory(trainer))
        show_metrics(trainer, self._metrics)
        self._seen_step = trainer.global_step
        if trainer.global_step == 0:
            self._run_on_time(trainer, pl_module)
        self._last_step = trainer.global_step
        probes = probes_of(trainer)
        if probes[-1] is self:
            check_monitors(trainer, {name: probe.every_n_steps for probe in probes for name in probe._metrics})

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step = trainer.global_step
        passed, self._seen_step = step - self._seen_step, step
        if passed:
            self._steps_of_batch = passed
            if self.is_due(step):
                self._run_on_time(trainer, pl_module)

    def is_due(self, step: int) -> bool:
        """Return whether the batch that ended at ``step`` reached or passed a multiple of ``every_n_steps``."""
        return step % self.every_n_steps < self._steps_of_batch

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._last_step and not self.part_of_training:
            self._run(trainer, pl_module)
        if self.failures:
            _log.warning("%s failed %d times in this run; its records have gaps.", type(self).__name__, self.failures)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning leaves the training loop out where a run is resumed at its very end.
        at_end = self._resuming and self._last_step < 0 and not self.is_due(trainer.global_step)
        if at_end and not self.part_of_training:
            self._run(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._holds_lock and trainer.is_global_zero:
            unlock(run_directory(trainer))
        self._holds_lock = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    # --- what happens to a record, or to an error ------------------------------------------------------------------

    def _run_on_time(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run, and keep the metrics for checkpoints."""
        self._metrics = self._metrics | self._run(trainer, pl_module)

    def _run(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        """Run, and return the metrics that were found."""
        self._last_step = trainer.global_step
        ranks = Ranks(
            trainer.global_rank, trainer.world_size, lambda tensor: trainer.strategy.reduce(tensor, reduce_op="sum")
        )
        record: ProbeRecord | None = None
        with plain_stderr(), self._going_on(trainer, alone=trainer.world_size == 1):
            self._look_for_nan(trainer, pl_module)
            record = self.probe(trainer, pl_module, ranks)
        metrics = {} if record is None else all_metrics(record, "levels")
        show_metrics(trainer, metrics)
        if record is not None and trainer.is_global_zero:
            with self._going_on(trainer, alone=True):
                RecordStore(run_directory(trainer)).append(record)
                if trainer.loggers:
                    log_record(trainer.loggers, record, self._history, logger_step(trainer, record.step), self.detail)
        if record is not None:
            with self._going_on(trainer, alone=True):
                metrics |= self.conclude(trainer)
            show_metrics(trainer, metrics)
        return metrics

    def _look_for_nan(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say once that a model with NaN in its weights is probed; its record has gaps."""
        name = None if self._nan_told else first_not_finite(self.subject(pl_module).network.named_parameters())
        if name is not None:
            self._nan_told = True
            _log.warning(
                "%s at step %d probes a network whose parameter %s has NaN or Inf in it: from here on its records have "
                "gaps.",
                type(self).__name__,
                trainer.global_step,
                name,
            )

    @contextmanager
    def _going_on(self, trainer: L.Trainer, alone: bool) -> Iterator[None]:
        """Keep an error from ending training, where no other rank waits for this one."""
        try:
            yield
        except ConfigurationError:
            raise
        except Exception as error:
            name, step = type(self).__name__, trainer.global_step
            if step == 0:
                error.add_note(
                    f"{name} failed before the first optimizer step: repair it, or take it out of the callbacks."
                )
            if step == 0 or not alone:
                raise
            self.failures += 1
            told = f"{name} failed at step {step} ({type(error).__name__}: {error}); training goes on."
            _log.error(told, exc_info=self.failures == 1)
            log_scalars(trainer.loggers, {f"probe_failures/{name}": float(self.failures)}, logger_step(trainer, step))

    @contextmanager
    def running(self, trainer: L.Trainer, ranks: Ranks) -> Iterator[Running]:
        """The arguments by which a probe knows of training, its progress among them."""
        with self.progress(trainer) as progress:
            yield {"step": trainer.global_step, "ranks": ranks, "progress": progress}

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


def probes_of(trainer: L.Trainer) -> list[ProbeCallback[Subject]]:
    """Return the probes among a Trainer's callbacks, in their order."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, ProbeCallback)]


def run_directory(trainer: L.Trainer) -> Path:
    """Return where everything of a run is written; of a ``fast_dev_run``, which is to leave nothing behind, a folder
    that goes with the Trainer.
    """
    if not is_dry_run(trainer):
        return Path(trainer.default_root_dir)
    if trainer not in _thrown_away:
        _thrown_away[trainer] = TemporaryDirectory(prefix="ldmprobe-", ignore_cleanup_errors=True)
    return Path(_thrown_away[trainer].name)
