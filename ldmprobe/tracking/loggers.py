"""Probe records to whatever loggers a Trainer has: scalars to all, pictures and charts to those that take them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import TypeGuard

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from ldmprobe.io.atomic import atomic_write
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import ProbeRecord
from ldmprobe.probing.verdict import Verdict
from ldmprobe.tracking.history import RunningHistory
from ldmprobe.tracking.logger_guard import going_on
from ldmprobe.tracking.pictures import Pictures
from ldmprobe.tracking.scalars import VERDICT_METRICS, Detail, best_ends, key, numbers, scalar_metrics, verdict_metrics
from ldmprobe.tracking.wandb import log_media, summarize, summarize_best
from ldmprobe.tracking.wandb import log_page as log_page_to_wandb

WANDB_ADDRESS = "wandb_url"  # in the directory of a run


def log_record(
    loggers: Iterable[Logger],
    record: ProbeRecord,
    history: RunningHistory,
    step: int,
    detail: Detail = "bands",
) -> None:
    """Send a record, already on disk, to each logger; one that fails does not keep it from the others.

    Args:
        history: of the same probe; read only where it is drawn.
        step: what the loggers are to call the record's step (``lightning_private.logger_step``).
    """
    _summarize_best(loggers, ((number.key, number.metric) for number in numbers(record)))
    log_scalars(loggers, scalar_metrics(record, detail), step)
    pictures = Pictures(record, history)
    for wandb_logger in _of_wandb(loggers):
        with going_on(wandb_logger):
            log_media(wandb_logger, pictures, step)
    for logger in loggers:
        if _is_tensorboard(logger):
            with going_on(logger):
                for name in pictures.names:
                    image = pictures.drawn(name)
                    logger.experiment.add_image(key(record, name), image, step, dataformats="HWC")


def log_scalars(loggers: Iterable[Logger], metrics: dict[str, float], step: int) -> None:
    """Send numbers to each logger; one that fails does not keep them from the others."""
    for logger in loggers:
        with going_on(logger):
            logger.log_metrics(metrics, step=step)


def log_verdict(loggers: Iterable[Logger], verdict: Verdict, step: int) -> None:
    """Send a verdict to each logger: its numbers to all, its words to those whose runs have a summary. ``step`` is as
    ``log_record``'s.
    """
    finite = {name: value for name, value in verdict_metrics(verdict).items() if isfinite(value)}
    _summarize_best(loggers, ((metric.name, metric) for metric in VERDICT_METRICS))
    log_scalars(loggers, finite, step)
    words = {"state": verdict.state.value, "sentence": verdict.sentence, "action": verdict.action}
    log_words(loggers, {f"verdict/{name}": text for name, text in words.items()}, verdict.state.exit_code == 1)


def log_words(loggers: Iterable[Logger], words: dict[str, str], alert: bool = False) -> None:
    """Put words into the summary of each logger's run that has one, which is Weights & Biases'.

    Args:
        alert: whether to send an alert, too, where the first of the words has not been there before.
    """
    for logger in _of_wandb(loggers):
        with going_on(logger):
            summarize(logger, words, alert)


def log_page(loggers: Iterable[Logger], page: Path, step: int) -> None:
    """Send a run's report to each logger that shows pages, which is Weights & Biases'."""
    for logger in _of_wandb(loggers):
        with going_on(logger):
            log_page_to_wandb(logger, page, step)


def note_addresses(loggers: Iterable[Logger], run_dir: Path) -> None:
    """Write down where a run is to be looked at in Weights & Biases, for its report; nothing of an offline one."""
    for logger in _of_wandb(loggers):
        if isinstance(url := logger.experiment.url, str):
            with atomic_write(run_dir / WANDB_ADDRESS) as file:
                file.write(url.encode())


def _summarize_best(loggers: Iterable[Logger], metrics: Iterable[tuple[str, Metric]]) -> None:
    ends = best_ends(metrics)
    for logger in _of_wandb(loggers):
        with going_on(logger):
            summarize_best(logger, ends)


def _of_wandb(loggers: Iterable[Logger]) -> Iterator[WandbLogger]:
    return filter(_is_wandb, loggers)


def _is_wandb(logger: Logger) -> TypeGuard[WandbLogger]:
    return _extends(logger, "WandbLogger")


def _is_tensorboard(logger: Logger) -> TypeGuard[TensorBoardLogger]:
    return _extends(logger, "TensorBoardLogger")


def _extends(logger: Logger, name: str) -> bool:
    """Return whether a logger is one called so, or extends it: by name, as `lightning` and `pytorch_lightning` have one
    each.
    """
    return any(kind.__name__ == name for kind in type(logger).__mro__)
