"""A past that a run has left: what was recorded after the step that it goes on from is set aside."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from ldmprobe.io.store import RecordStore
from ldmprobe.lightning_private import logger_step
from ldmprobe.tracking.csv_logger import ResumableCSVLogger
from ldmprobe.tracking.logger_guard import going_on


def set_aside_recorded(trainer: L.Trainer, run_dir: Path) -> None:
    """Set aside the records of later steps than the one that training begins at, and the rows of a ResumableCSVLogger;
    all earlier rows where nothing was restored. To be called before the first probe; a second call changes nothing.
    """
    if not trainer.is_global_zero:
        return
    anew = trainer.global_step == 0 and trainer.ckpt_path is None
    RecordStore(run_dir).set_aside(after=trainer.global_step)
    for logger in trainer.loggers:
        if isinstance(logger, ResumableCSVLogger):
            with going_on(logger):
                logger.set_aside(after=-1 if anew else logger_step(trainer, trainer.global_step))
