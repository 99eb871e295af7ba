"""Optimizers and learning-rate schedules that a run must have in common with the checkpoint that it goes on from."""

from __future__ import annotations

import lightning as L
from torch.optim.lr_scheduler import OneCycleLR

from ldmprobe.errors import ConfigurationError
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


def _name(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"
