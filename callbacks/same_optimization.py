"""Optimizers and learning-rate schedules that a run must have in common with the checkpoint that it goes on from."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch.optim.lr_scheduler import OneCycleLR

from ldmprobe.errors import ConfigurationError
from ldmprobe.lightning_private import callbacks_of, seeks_rate_in_vain
from ldmprobe.types import Batch, PlainValues

_NEW_RUN = "start a new run in another directory (FinetunedDiffusion takes a checkpoint's weights as `pretrained`)"


def optimization(trainer: L.Trainer) -> PlainValues:
    """Classes of the Trainer's optimizers and schedulers, and its number of processes, as plain values."""
    return {
        "optimizer": [_name(optimizer) for optimizer in trainer.optimizers],
        "learning-rate scheduler": [_name(config.scheduler) for config in trainer.lr_scheduler_configs],
        "processes": trainer.world_size,
    }


def check_same_optimization(theirs: PlainValues, ours: PlainValues) -> None:
    """Raise ConfigurationError if optimizers or schedulers are not of the checkpoint's classes, or not as many."""
    for what in ("optimizer", "learning-rate scheduler"):
        before, now = (", ".join(each.get(what, ())) or "none" for each in (theirs, ours))
        if what in theirs and before != now:
            raise ConfigurationError(
                f"The checkpoint has the {what} {before} and this configuration {now}, which cannot go on from its "
                f"state. Write what it was trained with; for another one {_NEW_RUN}."
            )


def check_schedules_last(trainer: L.Trainer, states: list[Batch]) -> None:
    """Raise ConfigurationError if a schedule of a fixed number of steps ends before the training does.

    Args:
        states: of the checkpoint's schedulers, which the Trainer's will take over; empty for a new run.
    """
    for i, config in enumerate(trainer.lr_scheduler_configs):
        if not isinstance(config.scheduler, OneCycleLR) or config.interval != "step":
            continue
        own = config.scheduler.total_steps
        total = states[i].get("total_steps", own) if i < len(states) else own
        if trainer.max_steps // config.frequency <= total:
            continue
        told = f"OneCycleLR has total_steps {total} and trainer.max_steps is {trainer.max_steps}"
        if states:
            kept = ""
            if own != total:
                kept = f" (the configuration's {own} are without effect, since the schedule goes on as it was)"
            raise ConfigurationError(
                f"The checkpoint's {told}: its learning rate has ended there{kept}. "
                f"Write `max_steps: {total * config.frequency}`, or less; to train longer {_NEW_RUN}."
            )
        raise ConfigurationError(
            f"{told}: there is no learning rate for the steps after it. "
            f"Write `total_steps: {trainer.max_steps // config.frequency}`."
        )


def check_no_tuner(trainer: L.Trainer) -> None:
    """Raise ConfigurationError if a run that goes on has one of Lightning's tuners among its callbacks.

    A tuner ends by restoring a checkpoint of its own, after which Lightning has forgotten the run's: training would
    start over at step 0, with the checkpoint's weights and a new optimizer, without a word.
    """
    for tuner in callbacks_of(trainer):
        if isinstance(tuner, (BatchSizeFinder, LearningRateFinder)):
            raise ConfigurationError(
                f"{type(tuner).__name__} would have this run start over at step 0, where it is to go on from "
                f"{trainer.ckpt_path}. Take it out of the callbacks."
            )


def check_rate_is_there(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Raise ConfigurationError if a LearningRateFinder is to set an attribute that the module does not have."""
    for finder in callbacks_of(trainer):
        if isinstance(finder, LearningRateFinder) and seeks_rate_in_vain(finder, pl_module):
            raise ConfigurationError(
                "LearningRateFinder sets a learning rate that is an attribute of the module, and "
                f"{type(pl_module).__name__} has it from its `optimizer`. Write `update_attr: false`, and read what "
                "`callback.optimal_lr.suggestion()` returns; docs/TRAINING.md says how far to trust it."
            )


def _name(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"
