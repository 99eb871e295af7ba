"""Probe records to whatever loggers a Trainer has: scalars to all, media to those that take them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.history import RunningHistory
from ldmprobe.tracking.logger_guard import going_on
from ldmprobe.tracking.pictures import Pictures

# Closed forms do not change over training, and a chart per timestep of these or of eigen-bands would drown a dashboard: they are drawn as curves.
_CLOSED_FORMS = (
    "step_kl_ideal",
    "step_kl_forward",
    "step_kl_floor",
    "marginal_gap_ideal",
    "denoising_mmse",
    "prediction_offset_floor",
)
_OBJECTIVE = ("timestep_density", "loss_weight", "training_emphasis")
_BALANCE = ("balance_progress", "balance_target", "balance_density", "balance_weight")
_BASE_MODEL = tuple(f"forgetting_{of}_before/{data}" for of in ("skill", "residual") for data in ("base", "new"))
RECORD_ONLY = _CLOSED_FORMS + _OBJECTIVE + _BALANCE + _BASE_MODEL


def scalar_metrics(record: ProbeRecord) -> dict[str, float]:
    """Return those of ``all_metrics`` that are finite."""
    return {name: value for name, value in all_metrics(record).items() if np.isfinite(value)}


def all_metrics(record: ProbeRecord) -> dict[str, float]:
    """Return the numbers of a record's scalars and curves under names of their own, such as ``probe/step_kl/t0981``; all of them but
    those of closed forms, the objective, the balancer, a base model and eigen-bands."""
    metrics = {f"probe/{name}": value for name, value in record.scalars.items()}
    for name, curve in record.curves.items():
        if name in RECORD_ONLY or "/band" in name:
            continue
        for timestep, value in zip(curve.timestep.tolist(), curve.value.tolist(), strict=True):
            # The training loss is by band of log-SNR, which has no timestep.
            if timestep >= 0:
                metrics[f"probe/{name}/t{timestep:04d}"] = value
        if curve.timestep.size and curve.timestep[0] < 0:
            metrics |= {f"probe/{name}/logsnr{x:+05.1f}": y for x, y in zip(curve.log_snr, curve.value, strict=True)}
    return {name: float(value) for name, value in metrics.items()}


def log_record(loggers: Iterable[Any], record: ProbeRecord, history: RunningHistory) -> None:
    """Send a record, already on disk, to each logger; one that fails does not keep it from the others.

    Args:
        history: of the same probe; read only where it is drawn.
    """
    log_scalars(loggers, scalar_metrics(record), record.step)
    pictures = Pictures(record, history)
    for logger in loggers:
        kind = type(logger).__name__
        with going_on(logger):
            if kind == "WandbLogger":
                from ldmprobe.tracking.wandb import log_media

                log_media(logger, pictures)
            elif kind == "TensorBoardLogger":
                _tensorboard_media(logger, pictures)


def log_scalars(loggers: Iterable[Any], metrics: dict[str, float], step: int) -> None:
    """Send numbers to each logger; one that fails does not keep them from the others."""
    for logger in loggers:
        with going_on(logger):
            logger.log_metrics(metrics, step=step)


def _tensorboard_media(logger: Any, pictures: Pictures) -> None:
    writer, record = logger.experiment, pictures.record
    if "pca" in record.scatters:
        writer.add_image("probe/pca_scatter", pictures.pca, record.step, dataformats="HWC")
    if "step_kl" in record.curves:
        writer.add_image("probe/step_kl", pictures.step_kl, record.step, dataformats="HWC")
        writer.add_image("probe/step_kl_heatmap", pictures.step_kl_heatmap, record.step, dataformats="HWC")
    if "samples" in record.images:
        writer.add_image("probe/samples", pictures.samples, record.step, dataformats="HWC")
