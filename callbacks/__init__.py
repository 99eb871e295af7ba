"""Callbacks: each decides when, calls a probe, and hands the record on.

Importable as ``ldmprobe.callbacks``; the files stand at the top of the repository, in ``callbacks/``.
"""

from ldmprobe.callbacks.ddim_probe import DDIMProbe
from ldmprobe.callbacks.denoising_probe import DenoisingProbe
from ldmprobe.callbacks.probe_callback import ProbeCallback
from ldmprobe.callbacks.report_writer import ReportWriter
from ldmprobe.callbacks.training_loss import TrainingLoss

__all__ = ["DDIMProbe", "DenoisingProbe", "ProbeCallback", "ReportWriter", "TrainingLoss"]
