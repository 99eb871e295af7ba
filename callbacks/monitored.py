"""Probe metrics where Lightning's ModelCheckpoint, EarlyStopping and learning-rate schedules look for what they
monitor.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ldmprobe.errors import ConfigurationError
from ldmprobe.lightning_private import callbacks_of
from ldmprobe.tracking.scalars import OF_PROBES


def show_metrics(trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
    """Put metrics into ``trainer.callback_metrics``, where they stay until the next ones take their place. Nothing is
    logged by it.
    """
    trainer.callback_metrics.update({name: torch.tensor(value, dtype=torch.float32) for name, value in metrics.items()})


def check_monitors(trainer: L.Trainer) -> None:
    """Make sure that every probe metric that is monitored is there, once all probes have run before the first optimizer
    step.

    Raises:
        ConfigurationError: it is not, so that Lightning would end the run when it looks for it.
    """
    known = [name for name in trainer.callback_metrics if name.startswith(OF_PROBES)]
    for who, monitor in _monitors(trainer):
        if monitor.startswith(OF_PROBES) and monitor not in known:
            near = difflib.get_close_matches(monitor, known, n=6, cutoff=0.4)
            raise ConfigurationError(
                f"{who} monitors {monitor!r}, which no probe has found before the first optimizer step. Among the "
                f"{len(known)} metrics that there are: "
                f"{', '.join(near or sorted(known, key=len)[:6]) or 'none; add a probe to the callbacks'}. (What is "
                "only found later, such as `probe_denoising/progress`, cannot be monitored.)"
            )


def _monitors(trainer: L.Trainer) -> Iterator[tuple[str, str]]:
    callbacks = callbacks_of(trainer)
    for callback in callbacks:
        if isinstance(callback, (ModelCheckpoint, EarlyStopping)) and callback.monitor is not None:
            yield type(callback).__name__, callback.monitor
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor is not None:
            yield type(config.scheduler).__name__, config.monitor
