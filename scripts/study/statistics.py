"""A study: several methods, each trained with the same seeds, against one of them. Statistics over seeds, from runs'
records.

A seed is one draw of everything that is random in training, the same for all methods: differences are taken seed by
seed, so that what a seed does to all methods alike cancels. Intervals and p-values are Student's t over seeds, p
corrected for the number of methods (Holm, 1979). With n seeds the 95 % interval is ±4.3 standard errors for n = 3, ±2.8
for 5: few seeds cannot tell much, and say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ldmprobe.analysis.bands import bands_of
from ldmprobe.analysis.comparison import holm
from ldmprobe.analysis.intervals import ClusteredMean, clustered_mean
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.tracking.comparable import Run
from ldmprobe.tracking.history import steps_of

BOUND, FID, KID, SECONDS = "denoising_bound_nats", "fid", "kid", "training_seconds"
GINI, RECOVERABLE, SKILL = "imbalance_gini", "recoverable_nats", "skill/"
GOALS = {"bound": (BOUND,), "FID": (FID,), "both": (BOUND, FID)}  # lower is better


@dataclass(frozen=True)
class StudyRun:
    """One method trained with one seed: by metric, the steps (K,) that it was measured at and its values (K,)."""

    method: str
    seed: int
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def final(self, metric: str) -> float:
        return float(self.curves[metric][1][-1])

    def at(self, metric: str, step: float) -> float:
        """Interpolated between measurements; NaN for a step that is none."""
        return float(np.interp(step, *self.curves[metric]))

    def steps_to_reach(self, targets: Mapping[str, float]) -> float:
        """The first optimizer step at which every metric is at or below its target, all at the same step, interpolated
        between measurements; NaN if never.
        """
        steps = np.arange(min(self.curves[metric][0][-1] for metric in targets) + 1)
        reached = [np.interp(steps, *self.curves[metric]) <= target for metric, target in targets.items()]
        first = np.flatnonzero(np.all(reached, axis=0))
        return float(steps[first[0]]) if first.size else float("nan")

    def step_after(self, seconds: float) -> float:
        """The step that training has come to after so many seconds; the last if it was done before."""
        at, taken = self.curves[SECONDS]
        return float(np.interp(seconds, taken, at))


@dataclass(frozen=True)
class Reached:
    """When a goal was reached: of the seeds that reached it, the mean (NaN where none did), and how many did."""

    mean: ClusteredMean
    seeds: int
    of: int


@dataclass(frozen=True)
class Method:
    """All that is known of a method; metrics are by name, goals as in ``GOALS``.

    Attributes:
        seeds: those it was trained with.
        final: at the end of training.
        difference: from the baseline at the end of training, paired by seed, p corrected over the methods; empty for
            the baseline.
        steps, seconds: until the baseline's final mean is reached.
        equal_seconds: bound and FID when training has cost what the baseline's does in all (or at the end, where that
            comes first).
        on_front: no other method's mean bound and mean FID are both lower.
        worse_than: methods whose bound and FID are both lower, each beyond the 95 % interval of the paired difference.
    """

    name: str
    seeds: list[int]
    final: Mapping[str, ClusteredMean]
    difference: Mapping[str, ClusteredMean]
    steps: Mapping[str, Reached]
    seconds: Mapping[str, Reached]
    equal_seconds: Mapping[str, ClusteredMean]
    on_front: bool
    worse_than: list[str]


@dataclass(frozen=True)
class Study:
    """Methods in the order they were given in, and the runs that they were trained in."""

    baseline: str
    methods: list[Method]
    runs: list[StudyRun]

    @property
    def last_step(self) -> int:
        return max(int(run.curves[BOUND][0][-1]) for run in self.runs)


def study_run(run: Run, method: str, seed: int) -> StudyRun:
    """Read what a study needs of a run's records.

    Raises:
        ConfigurationError: it was not measured by DenoisingProbe, SampleQuality and TrainingClock.
    """
    clock: Sequence[ProbeRecord] = RecordStore(run.directory).read("clock")
    records = {**run.records, "clock": clock}
    needed = {"denoising": "DenoisingProbe", "quality": "SampleQuality", "clock": "TrainingClock"}
    if missing := [callback for probe, callback in needed.items() if not records.get(probe)]:
        raise ConfigurationError(
            f"{run.directory} has no records of {', '.join(missing)}; put them among the callbacks of the study's base "
            "configuration."
        )
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for probe, metrics in (("denoising", _denoising), ("quality", _scalars), ("clock", _scalars)):
        steps = np.array(steps_of(records[probe]))
        rows = [metrics(record) for record in records[probe]]
        curves |= {name: (steps, np.array([row[name] for row in rows])) for name in rows[-1]}
    return StudyRun(method, seed, curves)


def _scalars(record: ProbeRecord) -> dict[str, float]:
    return {name: record.scalars[name] for name in (FID, KID, SECONDS) if name in record.scalars}


def _denoising(record: ProbeRecord) -> dict[str, float]:
    mse, mmse = record.curves["denoising_mse"], record.curves["denoising_mmse"].value
    skill = {f"{SKILL}{band.name}": float(1 - band.sum(mse.value) / band.sum(mmse)) for band in bands_of(mse.log_snr)}
    # From the curves, so that runs probed by an older ldmprobe, which took every level for .75 wide, are judged alike.
    nats = nats_per_error(mse.log_snr, float(record.provenance["dimension"]))
    recoverable = float(nats @ (record.curves["calibration_residual"].value * mse.value))
    return {BOUND: float(nats @ mse.value), GINI: record.scalars[GINI], RECOVERABLE: recoverable, **skill}


def study(runs: Sequence[StudyRun], baseline: str) -> Study:
    """Return everything that is computed.

    Raises:
        ConfigurationError: the baseline has no run.
    """
    by_method: dict[str, dict[int, StudyRun]] = {}
    for run in runs:
        by_method.setdefault(run.method, {})[run.seed] = run
    if baseline not in by_method:
        raise ConfigurationError(f"The baseline {baseline!r} has no finished run; there is nothing to compare with.")
    reference = by_method[baseline]
    targets = {metric: float(np.mean([run.final(metric) for run in reference.values()])) for metric in (BOUND, FID)}
    budget = float(np.mean([run.final(SECONDS) for run in reference.values()]))
    differences = _differences(by_method, baseline)
    means = {
        name: [float(over_seeds(_finals(each, m)).value) for m in (BOUND, FID)] for name, each in by_method.items()
    }
    front = pareto_front(means)
    methods = []
    for name, each in by_method.items():
        reached = {
            goal: {seed: run.steps_to_reach({m: targets[m] for m in metrics}) for seed, run in each.items()}
            for goal, metrics in GOALS.items()
        }
        methods.append(
            Method(
                name,
                sorted(each),
                {metric: over_seeds(_finals(each, metric)) for metric in next(iter(each.values())).curves},
                differences.get(name, {}),
                {goal: _reached(list(steps.values())) for goal, steps in reached.items()},
                {
                    goal: _reached([each[seed].at(SECONDS, step) for seed, step in steps.items()])
                    for goal, steps in reached.items()
                },
                {m: over_seeds([run.at(m, run.step_after(budget)) for run in each.values()]) for m in (BOUND, FID)},
                name in front,
                [other for other in by_method if other != name and _worse(each, by_method[other])],
            )
        )
    return Study(baseline, methods, list(runs))


def over_seeds(values: Sequence[float]) -> ClusteredMean:
    """Mean of independent values (n,), its 95 % interval by Student's t and the p-value of "it is 0"; the latter two
    NaN where n < 2.
    """
    if len(values) < 2:
        mean = values[0] if values else np.nan
        return ClusteredMean(np.array(mean), np.array(np.nan), np.array(np.nan))
    return clustered_mean(np.asarray(values), np.arange(len(values)))


def pareto_front(points: Mapping[str, Sequence[float]]) -> set[str]:
    """Return the names of the points to which no other is at least equal in every coordinate and better in one; lower
    is better.
    """
    return {
        name
        for name, point in points.items()
        if np.isfinite(point).all()
        and not any(np.less_equal(other, point).all() and np.less(other, point).any() for other in points.values())
    }


def _finals(runs: Mapping[int, StudyRun], metric: str) -> list[float]:
    return [run.final(metric) for run in runs.values()]


def _paired(runs: Mapping[int, StudyRun], others: Mapping[int, StudyRun], metric: str) -> ClusteredMean:
    """Return the mean difference over the seeds that both have."""
    return over_seeds([run.final(metric) - others[seed].final(metric) for seed, run in runs.items() if seed in others])


def _differences(by_method: Mapping[str, Mapping[int, StudyRun]], baseline: str) -> dict[str, dict[str, ClusteredMean]]:
    others = [name for name in by_method if name != baseline]
    shared = set.intersection(*({*run.curves} for each in by_method.values() for run in each.values()))
    found: dict[str, dict[str, ClusteredMean]] = {name: {} for name in others}
    for metric in shared:
        each = [_paired(by_method[name], by_method[baseline], metric) for name in others]
        adjusted = holm(np.array([float(one.p_value) for one in each]))
        for name, one, p_value in zip(others, each, adjusted, strict=True):
            found[name][metric] = ClusteredMean(one.value, one.half_width, p_value)
    return found


def _worse(runs: Mapping[int, StudyRun], others: Mapping[int, StudyRun]) -> bool:
    differences = [_paired(runs, others, metric) for metric in (BOUND, FID)]
    return all(bool(each.value - each.half_width > 0) for each in differences)


def _reached(values: Sequence[float]) -> Reached:
    known = [value for value in values if np.isfinite(value)]
    return Reached(over_seeds(known), len(known), len(values))
