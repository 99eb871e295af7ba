"""A study's results: as one tidy table, and as Markdown for a README."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from ldmprobe.analysis.intervals import ClusteredMean
from ldmprobe.comparison.words import probability
from study.statistics import (
    BOUND,
    FID,
    GINI,
    GOALS,
    KID,
    RECOVERABLE,
    SECONDS,
    SKILL,
    Method,
    Reached,
    Study,
    StudyRun,
    over_seeds,
)

_FEW = 2  # methods that are worth naming


def study_table(study: Study) -> pa.Table:
    """Return a row for each number: method, seed, metric, step, training_seconds until then, value."""
    rows = [
        {
            "method": run.method, "seed": run.seed, "metric": metric, "step": int(step),
            SECONDS: run.at(SECONDS, step), "value": float(value),
        }
        for run in study.runs
        for metric, (steps, values) in run.curves.items()
        for step, value in zip(steps, values, strict=True)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def study_markdown(study: Study, title: str, missing: Sequence[str] = ()) -> str:
    """Three tables: quality at the end, what it takes to reach the baseline's, skill by noise level.

    Args:
        title: above them, such as the study's name.
        missing: a sentence about each run that is not in them.
    """
    seeds = sorted({run.seed for run in study.runs})
    about = (
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}, {study.last_step:,} optimizer steps each. Mean ± 95 % interval "
        f"over seeds (Student's t); Δ: from {study.baseline}, paired by seed; p: of Δ = 0, corrected for the number of "
        "methods (Holm). Last column: on the Pareto front of the means, or worse in both bound and FID than others, "
        "each by more than the 95 % interval of the paired difference. Lower is better but for skill."
    )
    tables = (_quality(study), _reaching(study), _skill(study))
    return "\n\n".join([f"### {title}", about, *tables, *(f"Missing: {each}" for each in missing)]) + "\n"


def tuning_markdown(
    candidates: Sequence[str], runs: Sequence[tuple[str, str, StudyRun]], best: Mapping[str, str]
) -> str:
    """Each method's candidates by successive halving: bound and FID, mean over the seeds that each was given.

    Args:
        runs: method, candidate and what was measured.
        best: by method, the candidate that was chosen.
    """
    found: dict[str, dict[str, list[StudyRun]]] = {method: {name: [] for name in candidates} for method in best}
    for method, candidate, run in runs:
        found[method][candidate].append(run)

    def cell(method: str, candidate: str) -> str:
        if not (tried := found[method][candidate]):
            return "no run"
        bound, fid = (_told(over_seeds([run.final(metric) for run in tried])).split(" ±")[0] for metric in (BOUND, FID))
        text = f"{bound}, {fid} ({len(tried)})"
        return f"**{text}**" if candidate == best[method] else text

    note = (
        "Bound in nats and FID of each candidate, mean over its seeds, their number in brackets; bold: the one that was "
        "chosen, by seeds that are among those of the tables above, whose intervals and p do not allow for the choice."
    )
    rows = ([method, *(cell(method, candidate) for candidate in candidates)] for method in best)
    return f"\n{note}\n\n{_table(['method', *candidates], rows)}\n"


def _quality(study: Study) -> str:
    head = [
        "method", "bound, nats", "Δ bound", "p", "FID", "Δ FID", "p",
        "KID · 10³", "Gini of recoverable", "recoverable, nats", "bound and FID",
    ]  # fmt: skip

    def row(method: Method) -> Iterator[str]:
        for metric in (BOUND, FID):
            yield _told(method.final[metric])
            change = method.difference.get(metric)
            yield _told(change, sign="+") if change is not None else ""
            yield probability(float(change.p_value)) if change is not None else ""
        yield _told(_scaled(method.final[KID], 1000))
        yield _told(method.final[GINI])
        yield _told(method.final[RECOVERABLE])
        yield "Pareto front" if method.on_front else _worse(method.worse_than)

    return _table(head, ([_name(study, m), *row(m)] for m in study.methods))


def _reaching(study: Study) -> str:
    baseline = next(method for method in study.methods if method.name == study.baseline)
    budget = float(baseline.final[SECONDS].value)
    after = f"after {budget:,.0f} s"
    head = [
        f"to {study.baseline}'s final …",
        *(f"{goal}: steps" for goal in GOALS),
        "both: cost",
        f"{after}: bound",
        f"{after}: FID",
        "whole training, s",
    ]

    def row(method: Method) -> Iterator[str]:
        for goal in GOALS:
            yield _when(method.steps[goal])
        seconds = method.seconds["both"]
        yield _when(Reached(_scaled(seconds.mean, 100 / budget), seconds.seeds, seconds.of), " %")
        yield _told(method.equal_seconds[BOUND])
        yield _told(method.equal_seconds[FID])
        yield _told(method.final[SECONDS], at_most=0)

    note = (
        f"Steps until the mean over seeds that {study.baseline} ends at is first reached (both: in one and the same "
        "step), interpolated between probes; cost: seconds of training, the method's own probes included, as a share "
        f"of {study.baseline}'s; after {budget:,.0f} s: where a method stands when it has cost as much, or at its end."
    )
    return _table(head, ([_name(study, m), *row(m)] for m in study.methods)) + "\n\n" + note


def _skill(study: Study) -> str:
    bands = [metric for metric in study.methods[0].final if metric.startswith(SKILL)]
    head = ["skill at log-SNR", *(band.removeprefix(SKILL) for band in bands)]
    return _table(head, ([_name(study, m), *(_told(m.final[band]) for band in bands)] for m in study.methods))


def _name(study: Study, method: Method) -> str:
    return f"**{method.name}**" if method.name == study.baseline else method.name


def _worse(others: list[str]) -> str:
    named = ", ".join(others) if len(others) <= _FEW else f"{len(others)} others"
    return f"worse than {named}" if others else ""


def _table(head: Sequence[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _scaled(mean: ClusteredMean, factor: float) -> ClusteredMean:
    return ClusteredMean(factor * mean.value, factor * mean.half_width, mean.p_value)


def _told(mean: ClusteredMean, unit: str = "", at_most: int = 3, sign: str = "-") -> str:
    """Return a mean with as many decimals as its interval leaves meaning to."""
    value, half_width = float(mean.value), float(mean.half_width)
    if not math.isfinite(value):
        return "not finite"
    decimals = min(max(1 - math.floor(math.log10(half_width)), 0), at_most) if half_width > 0 else min(2, at_most)
    interval = f" ± {half_width:,.{decimals}f}" if math.isfinite(half_width) else ""
    return f"{value:{sign},.{decimals}f}{interval}{unit}".replace("-", "−")


def _when(reached: Reached, unit: str = "") -> str:
    if reached.seeds == 0:
        return "never"
    if reached.seeds < reached.of:  # an interval of those that got there would pass over the others
        return f"{float(reached.mean.value):,.0f}{unit} ({reached.seeds} of {reached.of} seeds)"
    return _told(reached.mean, unit, at_most=0)
