"""ReportWriter: the report page at the end of training."""

from __future__ import annotations

import logging

import lightning as L

from ldmprobe.callbacks.probe_callback import run_directory
from ldmprobe.tracking.loggers import log_page
from ldmprobe.tracking.report import write_report

_log = logging.getLogger(__name__)


class ReportWriter(L.Callback):
    """Writes ``report.html`` into the run directory when training ends (``ldmprobe report RUN_DIR`` does so at any
    time), and sends it to W&B. What keeps it from being written, such as a full disk, is logged; the end of the run is
    not spoilt.
    """

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        run_dir = run_directory(trainer)
        try:
            page = write_report(run_dir)
        except Exception as error:  # noqa: BLE001 (whatever it is, the run has ended well)
            _log.warning(
                "There is no report of this run: %s Its records are kept; `ldmprobe report %s` writes the page.",
                error,
                run_dir,
            )
        else:
            log_page(trainer.loggers, page, trainer.global_step)
