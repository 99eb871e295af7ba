"""The numbers of a probe record that loggers are sent, and their names there.

Each probe has a section of its own, such as ``probe_denoising/``. By default a logger is sent headlines: scalars, and
curves as one number for each band of log-SNR, such as ``probe_denoising/skill/logsnr-03``, which begins there.
``detail: levels`` sends every scalar and every level of every curve besides, such as ``probe_denoising/mse/t0981``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ldmprobe.analysis.bands import band_key, bands_of
from ldmprobe.io.metric import Good, Metric, Pool
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.probing.verdict import Verdict

Detail = Literal["bands", "levels"]
BestEnd = Literal["min", "max"]
SECTION = "probe_"  # what the names of all probes' metrics begin with
VERDICT = "verdict/"  # and of a verdict's
OF_PROBES = (SECTION, VERDICT)
VERDICT_METRICS = (
    Metric(
        "verdict/code", "State of the run",
        "−1 cannot say, 0 calibrated, 1 levelled off, 2 learning, 3 at fault, 4 overfitting, 5 memorizing, 6 broken.",
        shown="headline",
    ),
    Metric("verdict/recoverable_nats", "Still recoverable, at least", unit="nats", good="lower", shown="headline"),
    Metric("verdict/worst_band", "Band to look at first", "Its lower end.", "log-SNR", shown="headline"),
)  # fmt: skip


def scalar_metrics(record: ProbeRecord, detail: Detail = "bands") -> dict[str, float]:
    """Return those of ``all_metrics`` that are finite."""
    return {name: value for name, value in all_metrics(record, detail).items() if np.isfinite(value)}


def all_metrics(record: ProbeRecord, detail: Detail = "bands") -> dict[str, float]:
    """Return the numbers of a record that loggers are sent, under their names there."""
    return {number.key: number.value for number in numbers(record, detail)}


def best_ends(named: Iterable[tuple[str, Metric]]) -> dict[str, BestEnd]:
    """Return by name which end of its history is a metric's best, of those where lower or higher is better."""
    ends: dict[Good, BestEnd] = {"lower": "min", "higher": "max"}
    return {name: ends[metric.good] for name, metric in named if metric.good in ends}


@dataclass(frozen=True)
class Number:
    """A number that loggers are sent.

    Attributes:
        key: its name there.
        metric: what it means; of a band or a level, that of its curve.
        value: may be NaN.
    """

    key: str
    metric: Metric
    value: float


def numbers(record: ProbeRecord, detail: Detail = "bands") -> Iterator[Number]:
    """Yield the numbers of a record that loggers are sent: its scalars, then its curves' bands or levels."""
    shown = ("headline",) if detail == "bands" else ("headline", "detail")
    headlines = [name for name in record.scalars if record.metric(name).shown in shown]
    spreads = {record.metric(name).spread for name in headlines}
    for name, value in record.scalars.items():
        if name in spreads.union(headlines):
            yield Number(key(record, name), record.metric(name), float(value))
    for name, curve in record.curves.items():
        metric = record.metric(name)
        found: list[tuple[str, float]] = []
        if metric.shown == "headline" and metric.pool is not None:
            found += _bands(curve, metric.pool)
        if detail == "levels" and metric.shown in shown:
            found += _levels(curve, metric.along)
        yield from (Number(f"{key(record, name)}/{place}", metric, value) for place, value in found)


def key(record: ProbeRecord, name: str) -> str:
    """Return the name that a metric of a record has in loggers."""
    return f"{SECTION}{record.probe}/{name.removeprefix(f'{record.probe}_')}"


def _bands(curve: Curve, pool: Pool) -> Iterator[tuple[str, float]]:
    """Yield the bands of log-SNR that a curve has levels in, and the sum over each or the mean of its levels."""
    finite = np.isfinite(curve.log_snr)
    for band in bands_of(curve.log_snr[finite]):
        values = curve.value[finite]
        yield band_key(band.low), float(band.sum(values) if pool == "sum" else values[band.inside].mean())


def _levels(curve: Curve, along: str) -> Iterator[tuple[str, float]]:
    """Yield the levels of a curve, by timestep, or by log-SNR where there are no timesteps, and the number of each; its
    places where it is along something else. Where two levels would have one name, as those of a log-SNR grid between
    the same two timesteps, each is named by its place and log-SNR.
    """
    if along:
        yield from ((f"{index:03d}", float(value)) for index, value in enumerate(curve.value))
        return
    by_log_snr = [f"logsnr{log_snr:+05.1f}" for log_snr in curve.log_snr]
    names = [f"t{t:04d}" if t >= 0 else name for t, name in zip(curve.timestep, by_log_snr, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{index:03d}-{name}" for index, name in enumerate(by_log_snr)]
    yield from zip(names, map(float, curve.value), strict=True)


def verdict_metrics(verdict: Verdict) -> dict[str, float]:
    """Return the numbers of a verdict that loggers are sent, and that callbacks monitor, under their names there."""
    worst = verdict.worst.low if verdict.worst else float("nan")
    values = (float(verdict.state.code), verdict.recoverable, worst)
    return {metric.name: value for metric, value in zip(VERDICT_METRICS, values, strict=True)}
