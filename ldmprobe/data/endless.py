"""What a Trainer's settings mean to training data without end: honored, or refused by name.

A stream of training batches is one endless epoch, unless `limit_train_batches` or `overfit_batches` says of how many
batches one is. What happens at the ends of epochs would never happen; Lightning is silent about most of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import lightning as L
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
)

from ldmprobe import lightning_private as private
from ldmprobe.errors import ConfigurationError

_log = logging.getLogger(__name__)
_ENDLESS = "ImageData is one endless epoch"
# Lightning's and our default
_VALIDATE = "set `trainer.val_check_interval` to a number of batches, with `trainer.check_val_every_n_epoch` 1 or null"


def check_epochs(trainer: L.Trainer) -> None:
    """Called before training.

    Raises:
        ConfigurationError: a setting, or a callback, asks for what never comes.
    """
    overfitted = private.overfit_batches(trainer)
    if overfitted and not _is_number(overfitted):
        raise ConfigurationError(
            f"{_ENDLESS}, of which `trainer.overfit_batches: {overfitted}` is no share; write a number of batches, "
            "such as 4."
        )
    limit = trainer.limit_train_batches
    if limit and limit != 1.0 and not _is_number(limit):
        raise ConfigurationError(
            f"{_ENDLESS}, of which `trainer.limit_train_batches: {limit}` is no share; write a number of batches, "
            "after which an epoch is said to end, or leave it out."
        )
    private.allow_early_stop(trainer)
    if _is_number(limit):
        _check_interval(trainer, int(limit))
        return
    for setting, instead in (*_unmet_settings(trainer), *_unmet_callbacks(trainer)):
        raise ConfigurationError(f"{_ENDLESS}: {setting} would never have an effect. Instead {instead}.")
    if trainer.enable_validation and not _validates(trainer):
        _log.warning("%s, so that nothing will be validated: %s, or limit_val_batches to 0.", _ENDLESS, _VALIDATE)


def _is_number(limit: float) -> bool:
    """Return whether this many batches are meant, not a share of all; so Lightning tells them apart."""
    return isinstance(limit, int)


def _check_interval(trainer: L.Trainer, num_batches: int) -> None:
    interval, every_n_epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if (
        trainer.enable_validation
        and isinstance(interval, int)
        and every_n_epochs is not None
        and interval > num_batches
    ):
        raise ConfigurationError(
            f"`trainer.val_check_interval: {interval}` is more than an epoch of {num_batches} batches has; set "
            "`check_val_every_n_epoch: null`, so that batches are counted across epochs, or a smaller interval."
        )


def _validates(trainer: L.Trainer) -> bool:
    """Return whether a validation ever comes, in an epoch that does not end."""
    if private.validates_by_time(trainer):
        return True
    return isinstance(trainer.val_check_interval, int) and trainer.check_val_every_n_epoch in (None, 1)


def _unmet_settings(trainer: L.Trainer) -> Iterator[tuple[str, str]]:
    """Each with what to write instead."""
    if trainer.max_epochs not in (None, -1):
        yield (
            f"`trainer.max_epochs: {trainer.max_epochs}`",
            (
                "limit training by `trainer.max_steps` (and leave out `trainer.max_epochs`), or give "
                "`trainer.limit_train_batches`"
            ),
        )
    if trainer.min_epochs:
        yield f"`trainer.min_epochs: {trainer.min_epochs}`", "use `trainer.min_steps`"
    if private.reloads_data(trainer):
        yield "`trainer.reload_dataloaders_every_n_epochs`", "leave it out"
    interval = trainer.val_check_interval
    if trainer.enable_validation and isinstance(interval, float) and interval != 1.0:
        yield f"`trainer.val_check_interval: {interval}`, a share of an epoch,", _VALIDATE


def _unmet_callbacks(trainer: L.Trainer) -> Iterator[tuple[str, str]]:
    """Each with what to write instead."""
    validates = trainer.enable_validation and _validates(trainer)
    for callback in private.callbacks_of(trainer):
        name = type(callback).__name__
        match callback:
            case ModelCheckpoint(every_n_epochs=int(n), monitor=monitor) if n > 1 or (
                n == 1 and monitor and not validates
            ):
                yield (
                    f"{name} with every_n_epochs {n} and monitor {monitor}",
                    f"use `every_n_train_steps`, or {_VALIDATE}",
                )
            case EarlyStopping() if private.checks_at_epoch_end(callback, trainer) or not validates:
                yield name, f"leave out `check_on_train_epoch_end` and {_VALIDATE}"
            case GradientAccumulationScheduler() if max(callback.scheduling) > 0:
                yield f"{name} from epoch {max(callback.scheduling)} on", "use `trainer.accumulate_grad_batches`"
            case LearningRateMonitor(logging_interval="epoch"):
                yield f"{name} with logging_interval epoch", 'write "step"'
            case Timer() if private.counts_epochs(callback):
                yield f"{name} with interval epoch", 'write "step", or use `trainer.max_time`'
            case StochasticWeightAveraging():
                yield name, "use LatentDiffusion's `ema_decay`"
            case BaseFinetuning() | ModelPruning():
                yield name, "say by `trainer.limit_train_batches` how many batches are an epoch"
