"""ReportWriter: the report page, as training goes on and at its end."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import lightning as L

from ldmprobe.callbacks.probe_callback import probes_of, run_directory
from ldmprobe.io.store import RecordStore
from ldmprobe.lightning_private import logger_step
from ldmprobe.tracking.loggers import log_page, note_addresses
from ldmprobe.tracking.report import write_report

_log = logging.getLogger(__name__)
_SHARE, _FIRST_SECONDS = 0.02, 1.0  # of the time so far that pages may take; and what the first is thought to take


class ReportWriter(L.Callback):
    """Writes ``report.html`` into the run directory when there are new records, and at the end of training
    (``ldmprobe report RUN_DIR`` does so at any time), and sends the last page to W&B.

    While training goes on, pages take 2 % of the time at most: a page of a run with many records takes seconds. What
    keeps one from being written, such as a full disk, is logged; the run goes on and ends well.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._probes = probes_of(trainer)
        self._began, self._spent, self._next = time.monotonic(), 0.0, _FIRST_SECONDS
        self._shown = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        latest = max((probe.last_step for probe in self._probes), default=-1)
        allowed = _SHARE * (time.monotonic() - self._began)
        if latest <= self._shown or self._spent + self._next > allowed or not trainer.is_global_zero:
            return
        self._shown, began = latest, time.monotonic()
        if RecordStore(run_directory(trainer)).paths():
            self._write(trainer)
            self._next = time.monotonic() - began
            self._spent += self._next

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and (page := self._write(trainer)) is not None:
            log_page(trainer.loggers, page, logger_step(trainer, trainer.global_step))

    def _write(self, trainer: L.Trainer) -> Path | None:
        """Write the page, and return where it is; None where it cannot be written."""
        run_dir = run_directory(trainer)
        try:
            note_addresses(trainer.loggers, run_dir)
            return write_report(run_dir)
        except Exception as error:  # noqa: BLE001 (whatever it is, the run is well)
            _log.warning(
                "There is no report of this run: %s Its records are kept; `ldmprobe report %s` writes the page.",
                error,
                run_dir,
            )
            return None
