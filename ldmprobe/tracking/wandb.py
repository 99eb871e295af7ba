"""Probe records in Weights & Biases. The only file that imports wandb.

Scalars go through Lightning's logger with the step that Lightning itself would log under, and so share its
``trainer/global_step`` axis; media carry the same column. Never ``experiment.log(step=…)``: wandb drops smaller steps
silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.curves import axis_of
from ldmprobe.tracking.pictures import Pictures
from ldmprobe.tracking.scalars import BestEnd, key

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger
    from wandb import Table
    from wandb.plot.custom_chart import CustomChart

STEP = "trainer/global_step"
PAGE = "report"
_LARGEST_PAGE = 2_000_000  # bytes
_summarized: WeakKeyDictionary[WandbLogger, set[str]] = WeakKeyDictionary()


def summarize_best(logger: WandbLogger, ends: Mapping[str, BestEnd]) -> None:
    """Have the run's summary hold the best value and the last of each metric that is named, instead of the last alone.

    By exact names: where patterns overlap, wandb takes any of them.
    """
    known = _summarized.setdefault(logger, set())
    for name, end in ends.items():
        if name not in known:
            logger.experiment.define_metric(name, step_metric=STEP, summary=f"{end},last")
            known.add(name)


def log_media(logger: WandbLogger, pictures: Pictures, step: int) -> None:
    """Send a record's pictures, its scatters as tables, and its curves as line charts to Lightning's WandbLogger."""
    import wandb

    record = pictures.record
    media: dict[str, object] = {
        key(record, name): wandb.Image(pictures.drawn(name), caption=f"training step {record.step}")
        for name in image_names(pictures)
    }
    media |= {key(record, f"{name}_table"): _scatter_table(record, name) for name in record.scatters}
    for name in record.curves:
        shown = record.metric(name).shown
        if shown == "headline" or (shown == "detail" and "/" not in name):
            media[key(record, f"{name}_curves")] = _line_series(pictures, name)
    if media:
        logger.experiment.log({**media, STEP: step})


def image_names(pictures: Pictures) -> list[str]:
    """Return which pictures are sent as images: curves are charts there."""
    return [name for name in pictures.names if name != "curves"]


def log_page(logger: WandbLogger, page: Path, step: int) -> None:
    """Send a report, which W&B shows in a panel, unless it is large."""
    import wandb

    if page.stat().st_size <= _LARGEST_PAGE:
        with page.open(encoding="utf-8") as file:
            logger.experiment.log({PAGE: wandb.Html(file, inject=False), STEP: step})


def summarize(logger: WandbLogger, words: dict[str, str], alert: bool = False) -> None:
    """Put words into the run's summary; with ``alert``, send them to whoever asked for alerts when the first of them is
    new.
    """
    summary, (first, *others) = logger.experiment.summary, words
    if alert and summary.get(first) != words[first]:
        told = " ".join(words[name] for name in others)
        logger.experiment.alert(title=words[first], text=told, level="WARN")
    summary.update(words)


def start_error(error: BaseException) -> ConfigurationError | None:
    """Return what to tell the user if ``error`` is wandb's own: a run that could not start, for want of a network, a
    server or a key.
    """
    if not type(error).__module__.startswith("wandb."):
        return None
    reason = " ".join(str(error).split()).rstrip(".")
    return ConfigurationError(
        f"Weights & Biases could not start a run: {reason}. Set the logger's `offline: true` (and send the run later "
        "with `wandb sync`), or check the network, WANDB_BASE_URL and WANDB_API_KEY."
    )


def _line_series(pictures: Pictures, name: str) -> CustomChart:
    import wandb

    metric = pictures.record.metric(name)
    lines = [(f"step {record.step}", record.curves[name]) for record in pictures.curves if name in record.curves]
    if (ideal := str(metric.ideal_of(name))) in pictures.record.curves:
        lines.append(("ideal", pictures.record.curves[ideal]))
    axis = axis_of(metric)
    return wandb.plot.line_series(
        xs=[axis.of(pictures.record, curve).tolist() for _, curve in lines],
        ys=[curve.value.tolist() for _, curve in lines],
        keys=[label for label, _ in lines],
        title=f"{metric.title} [{metric.unit}]",
        xname=axis.name,
        split_table=True,
    )


def _scatter_table(record: ProbeRecord, name: str) -> Table:
    """Return a new table for each probe: a growing one is frozen at its first version or costs quadratically."""
    import wandb

    labels = record.provenance.get("sample_labels") or []
    rows = [
        [record.step, scatter.timestep, i, labels[i] if i < len(labels) else -1, x, y]
        for scatter in record.scatters[name]
        for i, (x, y) in enumerate(scatter.xy.tolist())
    ]
    table = wandb.Table(columns=["step", "timestep", "sample", "label", "x", "y"], data=rows[:1])
    # Of the first row's types; Table would infer them anew for each, which takes longer than all the rest.
    table.data.extend(rows[1:])
    return table
