"""The private ground of Lightning: every attribute and every entry of a checkpoint that its documentation does not
promise.

No other file touches these (``tests/test_layers.py``). ``tests/test_lightning_private.py`` tests them for the versions
in ``constraints*.txt``; a new minor version of Lightning needs these two files looked at, and no others.
"""

from __future__ import annotations

from typing import cast

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint, Timer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.parsing import lightning_hasattr

from ldmprobe.types import StateDict

# --- settings and progress of a Trainer ------------------------------------------------------------------------------


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """Return all callbacks, those that the Trainer has added included."""
    return cast("list[L.Callback]", vars(trainer)["callbacks"])


def datamodule_of(trainer: L.Trainer) -> object:
    """Return what the Trainer was given as `datamodule`, or None."""
    return vars(trainer).get("datamodule")


def is_dry_run(trainer: L.Trainer) -> bool:
    """Return whether this is a ``fast_dev_run``."""
    return bool(vars(trainer)["fast_dev_run"])


def log_interval(trainer: L.Trainer) -> int:
    """Return ``log_every_n_steps``."""
    return int(vars(trainer)["log_every_n_steps"])


def overfit_batches(trainer: L.Trainer) -> int | float:
    """Return how many training batches are repeated, or which share of all; 0 if none are."""
    return cast("int | float", vars(trainer)["overfit_batches"])


def reloads_data(trainer: L.Trainer) -> bool:
    """Return whether ``reload_dataloaders_every_n_epochs`` is set."""
    return bool(vars(trainer)["reload_dataloaders_every_n_epochs"])


def validates_by_time(trainer: L.Trainer) -> bool:
    """Return whether ``val_check_interval`` is a time."""
    return vars(trainer)["_val_check_time_interval"] is not None


def allow_early_stop(trainer: L.Trainer) -> None:
    """Undo the ``min_epochs`` of 1 that Lightning derives from ``min_steps``: in an endless epoch, nothing would ever
    stop training early.
    """
    if trainer.min_steps is not None and trainer.fit_loop.min_epochs == 1:
        trainer.fit_loop.min_epochs = 0


def counts_epochs(timer: Timer) -> bool:
    """Return whether a Timer stops at the ends of epochs only."""
    return timer._interval == "epoch"


def seeks_rate_in_vain(tuner: LearningRateFinder, module: L.LightningModule) -> bool:
    """Return whether a LearningRateFinder is to set an attribute that the module does not have."""
    names = [tuner._attr_name] if tuner._attr_name else ["lr", "learning_rate"]
    return tuner._update_attr and not any(lightning_hasattr(module, name) for name in names)


def checks_at_epoch_end(callback: EarlyStopping, trainer: L.Trainer) -> bool:
    """Return whether an EarlyStopping checks at the end of a training epoch, as it decides itself, later."""
    if callback._check_on_train_epoch_end is not None:
        return callback._check_on_train_epoch_end
    return trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1


def saves_every_n_steps(callback: ModelCheckpoint) -> int:
    """Return ``every_n_train_steps`` of a ModelCheckpoint; 0 for one that does not save by steps."""
    return callback._every_n_train_steps


def saves_by_time(callback: ModelCheckpoint) -> bool:
    """Return whether a ModelCheckpoint saves by time."""
    return callback._train_time_interval is not None


def saves_at_epoch_end(callback: ModelCheckpoint, trainer: L.Trainer) -> bool:
    """Return whether a ModelCheckpoint that saves by epochs does so at their end, not after validation; known once
    training starts.
    """
    return callback._should_save_on_train_epoch_end(trainer)


def batches_begun(trainer: L.Trainer) -> int:
    """Return the number of the current training batch, over all epochs and resumes."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def batches_processed(trainer: L.Trainer) -> int:
    """Return how many training batches have been processed, over all epochs and resumes."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.state_dict()["total"]["processed"])


def logger_step(trainer: L.Trainer, step: int) -> int:
    """Return what Lightning's loggers call an optimizer step that has just been taken: ``step``, or, with manual
    optimization, where a batch may take several, the number of batches so far.
    """
    if trainer.lightning_module.automatic_optimization:
        return step
    loop = trainer.fit_loop.epoch_loop
    return loop._batches_that_stepped + in_batch_end(loop.batch_progress.state_dict())


def is_accumulating(trainer: L.Trainer) -> bool:
    """Return whether the current batch's gradients wait for those of further batches."""
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return ready % trainer.accumulate_grad_batches != 0 and ready != trainer.num_training_batches


def pending_row(trainer: L.Trainer) -> dict[str, float]:
    """Return the row of metrics that the loggers are to be given next."""
    metrics = trainer._logger_connector.metrics["log"]
    return {"epoch": trainer.current_epoch, **{name: float(value) for name, value in metrics.items()}}


def ended_between_batches(trainer: L.Trainer) -> bool:
    """Return whether an exception came neither within the end of a batch, where ModelCheckpoint saves, nor after an
    epoch.
    """
    progress = trainer.fit_loop.state_dict()
    epochs = progress["epoch_progress"]["current"]
    return not in_batch_end(progress["epoch_loop.batch_progress"]) and epochs["processed"] != epochs["ready"]


def loop_counters(trainer: L.Trainer) -> StateDict:
    """Return the counters of the training loops, nested by their names."""
    return trainer.fit_loop.state_dict()


def reset_validation_counts(trainer: L.Trainer) -> None:
    """Have the counts of a validation that was due before a resume go on from before it."""
    trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()


# --- the loops' state in a checkpoint --------------------------------------------------------------------------------


class LoopState:
    """The progress of training in a checkpoint, to be read and corrected in place."""

    def __init__(self, checkpoint: StateDict) -> None:
        loop = checkpoint["loops"]["fit_loop"]
        self.batches: StateDict = loop["epoch_loop.batch_progress"]
        self._state: StateDict = loop["epoch_loop.state_dict"]
        self._validation: StateDict = loop["epoch_loop.val_loop.batch_progress"]

    @property
    def in_batch_end(self) -> bool:
        """Return whether the checkpoint falls within ``on_train_batch_end``."""
        return in_batch_end(self.batches)

    @property
    def steps(self) -> int:
        """The optimizer steps that loggers count rows by."""
        return int(self._state["_batches_that_stepped"])

    def validation_due(self, trainer: L.Trainer) -> bool:
        """Return whether Lightning validates after this batch; known for intervals in batches, of the whole training or
        of an epoch.
        """
        interval, every_n_epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
        if not trainer.enable_validation or not isinstance(interval, int):
            return False
        if every_n_epochs is None:
            return bool(self.batches["total"]["processed"] % interval == 0)
        due: bool = self.batches["current"]["processed"] % interval == 0
        return due and (trainer.current_epoch + 1) % every_n_epochs == 0

    def count_batch(self) -> None:
        """Count the processed batch as completed."""
        self._count_completed(1)

    def reopen_batch(self, stepped: bool) -> None:
        """Set the state back into the end of its last batch, where checkpoints are saved."""
        self._count_completed(-1)
        self._state["_batches_that_stepped"] -= stepped

    def begin_validation(self) -> None:
        """Make the state one that was saved in the first batch of a validation: Lightning goes back and validates
        before it trains.
        """
        self._validation["total"].update(ready=1, started=1, processed=0, completed=0)
        self._validation["current"].update(ready=0, started=0, processed=0, completed=0)
        self._validation["is_last_batch"] = False

    def _count_completed(self, number: int) -> None:
        for scope in ("total", "current"):
            self.batches[scope]["completed"] += number


def in_batch_end(batches: StateDict) -> bool:
    """Return whether a batch is processed and not yet completed."""
    return bool(batches["total"]["completed"] == batches["total"]["processed"] - 1)


def processed_in(checkpoint: StateDict) -> int:
    """Return how many training batches a checkpoint counts."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"])


# --- loggers ---------------------------------------------------------------------------------------------------------


def set_wandb_id(logger: WandbLogger, run_id: str) -> None:
    """Give a logger that has not started the id of the run that it goes on with."""
    logger._wandb_init["id"] = logger._id = run_id
