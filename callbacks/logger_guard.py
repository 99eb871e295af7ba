"""LoggerGuard: training goes on when a logger fails."""

from __future__ import annotations

import logging

import lightning as L

from ldmprobe.tracking.logger_guard import failures, guard

_log = logging.getLogger(__name__)


class LoggerGuard(L.Callback):
    """Guards the Trainer's loggers: one that crashes in the middle of a run (W&B's service process killed, a full disk,
    a lost server) is told once, with its traceback, and counted; training, probes and the other loggers go on. How
    often each failed is said at the end.

    A logger that cannot *start* still ends the run, before training.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            guard(logger)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            if failures(logger):
                _log.warning(
                    "%s failed %d times in this run, so its curves have gaps; the probes' records in %s are complete.",
                    type(logger).__name__,
                    failures(logger),
                    trainer.default_root_dir,
                )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")
