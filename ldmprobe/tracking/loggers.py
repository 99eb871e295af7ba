"""Probe records to whatever loggers a Trainer has: scalars to all, media to those that take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ldmprobe.probing.record import ProbeRecord
from ldmprobe.tracking import figures
from ldmprobe.tracking.logger_guard import going_on

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
    """The numbers of a record's scalars and curves under names of their own, such as ``probe/step_kl/t0981``; all of them but those of
    closed forms, the objective, the balancer, a base model and eigen-bands."""
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
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}


def log_record(loggers: Iterable[Any], record: ProbeRecord, history: Callable[[], Sequence[ProbeRecord]]) -> None:
    """Send a record, already on disk, to each logger; one that fails does not keep it from the others.

    Args:
        history: reads all records of the same probe so far, this one last; called only where they are drawn.
    """
    of_interest = {"step_kl", "denoising_mse", "training_emphasis", "balance_density", "forgetting_nats/base"}
    drawn = bool(record.scatters or record.images or of_interest & record.curves.keys())
    log_scalars(loggers, scalar_metrics(record), record.step)
    for logger in loggers:
        kind = type(logger).__name__
        with going_on(logger):
            if kind == "WandbLogger" and drawn:
                from ldmprobe.tracking.wandb import log_media

                log_media(logger, record, history())
            elif kind == "TensorBoardLogger" and drawn:
                _tensorboard_media(logger, record, history())


def log_scalars(loggers: Iterable[Any], metrics: dict[str, float], step: int) -> None:
    """Send numbers to each logger; one that fails does not keep them from the others."""
    for logger in loggers:
        with going_on(logger):
            logger.log_metrics(metrics, step=step)


def _tensorboard_media(logger: Any, record: ProbeRecord, history: Sequence[ProbeRecord]) -> None:
    writer = logger.experiment
    if "pca" in record.scatters:
        writer.add_figure("probe/pca_scatter", figures.pca_figure(record), record.step)
    if "step_kl" in record.curves:
        writer.add_figure("probe/step_kl", figures.kl_figure(history), record.step)
        writer.add_figure("probe/step_kl_heatmap", figures.heatmap_figure(history), record.step)
    if "samples" in record.images:
        writer.add_figure("probe/samples", figures.samples_figure(record), record.step)
