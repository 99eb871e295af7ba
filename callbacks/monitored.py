"""Probe metrics where Lightning's ModelCheckpoint, EarlyStopping and learning-rate schedules look for what they
monitor.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from math import ceil, inf, lcm

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ldmprobe.errors import ConfigurationError
from ldmprobe.lightning_private import (
    callbacks_of,
    checks_at_epoch_end,
    is_dry_run,
    saves_at_epoch_end,
    saves_by_time,
    saves_every_n_steps,
)
from ldmprobe.tracking.scalars import OF_PROBES

_log = logging.getLogger(__name__)
_ENDLESS = 10**15  # batches of an epoch whose length Lightning does not know
_LOOKS = 10_000  # that are checked


def show_metrics(trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
    """Put metrics into ``trainer.callback_metrics``, where they stay until the next ones take their place. Nothing is
    logged by it.
    """
    trainer.callback_metrics.update({name: torch.tensor(value, dtype=torch.float32) for name, value in metrics.items()})


def check_monitors(trainer: L.Trainer, found: Mapping[str, int]) -> None:
    """Make sure that every probe metric that is monitored is there, and new whenever it is looked at, once all probes
    have run before the first optimizer step. Where the steps of the looks cannot be known, a warning says how to make
    them the probe's.

    Args:
        found: the metrics that probes have found, with the number of optimizer steps between their probes.

    Raises:
        ConfigurationError: a metric is not there, so that Lightning would end the run when it looks for it; or it is
            looked at after steps at which no probe runs, so that an old value would be taken for a new one.
    """
    for who, monitor, advice, looks in _monitors(trainer):
        if not monitor.startswith(OF_PROBES):
            continue
        if monitor not in found:
            near = difflib.get_close_matches(monitor, found, n=6, cutoff=0.4)
            raise ConfigurationError(
                f"{who} monitors {monitor!r}, which no probe has found before the first optimizer step. Among the "
                f"{len(found)} metrics that there are: "
                f"{', '.join(near or sorted(found, key=len)[:6]) or 'none; add a probe to the callbacks'}. (What is "
                "only found later, such as `probe_denoising/progress`, cannot be monitored.)"
            )
        every, last = found[monitor], inf if trainer.max_steps < 0 else trainer.max_steps
        stale = next((step for step in islice(looks or (), _LOOKS) if step % every and step <= last), None)
        if is_dry_run(trainer) or (looks is not None and stale is None):
            continue
        told = f"{monitor!r} is new every {every} optimizer steps, when its probe runs, but {who}"
        advice = advice.format(every=every, batches=every * trainer.accumulate_grad_batches)
        if stale is None or not trainer.lightning_module.automatic_optimization:
            _log.warning("%s may look at it in between, and take an old value for a new one: %s.", told, advice)
        else:
            raise ConfigurationError(
                f"{told} looks at it after step {stale}, too, and would take the value of step {stale - stale % every} "
                f"for a new one: {advice}."
            )


def _monitors(trainer: L.Trainer) -> Iterator[tuple[str, str, str, Iterable[int] | None]]:
    """Yield who monitors what, how to make it look when a probe has run, and after which optimizer steps it looks; None
    where they cannot be known.
    """
    for callback in callbacks_of(trainer):
        name = type(callback).__name__
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            advice = "set its `every_n_train_steps` to {every}"
            yield name, callback.monitor, advice, _saves(trainer, callback)
        if isinstance(callback, EarlyStopping):
            advice = (
                "set `trainer.val_check_interval` to {batches}, with `trainer.check_val_every_n_epoch` null, or use "
                "StopRule, which goes by each DenoisingProbe"
            )
            at_epoch_end = checks_at_epoch_end(callback, trainer)
            yield name, callback.monitor, advice, _steps(trainer, inf) if at_epoch_end else _validations(trainer)
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor is not None:
            advice = "set `interval` to step and `frequency` to {batches}"
            if config.interval == "step":
                looks = _steps(trainer, lcm(config.frequency, trainer.accumulate_grad_batches))
            else:
                looks = _steps(trainer, inf, config.frequency)
            yield type(config.scheduler).__name__, config.monitor, advice, looks


def _saves(trainer: L.Trainer, callback: ModelCheckpoint) -> Iterable[int] | None:
    """Return after which optimizer steps a ModelCheckpoint looks at what it monitors."""
    if saves_by_time(callback):
        return None
    if every := saves_every_n_steps(callback):
        return count(every, every)
    if not (every_n_epochs := callback.every_n_epochs):
        return ()
    if saves_at_epoch_end(callback, trainer):
        return _steps(trainer, inf, every_n_epochs)
    return _validations(trainer, every_n_epochs)


def _validations(trainer: L.Trainer, every_n_epochs: int = 1) -> Iterable[int] | None:
    """Return after which optimizer steps Lightning validates, in epochs whose number this divides."""
    if not trainer.enable_validation:
        return ()
    num_batches, every = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if num_batches is None:  # by time
        return None
    return _steps(trainer, num_batches, None if every is None else lcm(every, every_n_epochs))


def _steps(trainer: L.Trainer, num_batches: float, every_n_epochs: int | None = 1) -> Iterable[int] | None:
    """Return the optimizer steps that have been taken after each ``num_batches`` batches of every so many epochs, or of
    all of training (None); infinitely many are an epoch. A batch is taken to be one step, or a part of one.
    """
    epoch = int(min(trainer.num_training_batches, _ENDLESS))
    num_batches = epoch if num_batches == inf else int(num_batches)
    if num_batches == _ENDLESS:
        return None
    if every_n_epochs is None:
        batches: Iterable[int] = count(num_batches, num_batches)
    else:
        begins = (epoch * (every_n_epochs * i - 1) for i in range(1, _LOOKS))
        batches = (begin + batch for begin in begins for batch in range(num_batches, epoch + 1, num_batches))
    together = trainer.accumulate_grad_batches
    return (batch // epoch * ceil(epoch / together) + batch % epoch // together for batch in batches)
