"""ReportWriter: the report page at the end of training."""

from __future__ import annotations

import lightning as L

from ldmprobe.callbacks.probe_callback import run_directory
from ldmprobe.tracking.report import write_report


class ReportWriter(L.Callback):
    """Writes ``report.html`` into the run directory when training ends (``ldmprobe report RUN_DIR`` does so at any time)."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            write_report(run_directory(trainer))
