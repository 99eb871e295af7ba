"""Findings of a comparison: paired gains, bounds over training, steps to the same quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ldmprobe.analysis.comparison import BandGain, StepsToReach, gains_by_band, steps_to_reach
from ldmprobe.analysis.intervals import ClusteredMean, clustered_mean
from ldmprobe.comparison.configuration import only_seeds_differ
from ldmprobe.probing.denoising_record import (
    LOG_SNR_SPACING,
    PROBE,
    bound_per_draw,
    errors_of,
    image_of_draw,
    log_snr_of,
    nats_of,
)
from ldmprobe.tracking.comparable import Moment, Run, moments, same_levels
from ldmprobe.tracking.history import steps_of


@dataclass(frozen=True)
class Gains:
    """Gains of the other runs over the first, by label, at one moment: per level (L,), and by band with the total at
    the end.
    """

    levels: Mapping[str, ClusteredMean]
    bands: Mapping[str, list[BandGain]]


@dataclass(frozen=True)
class Comparison:
    """All that is known of the runs.

    Attributes:
        runs: the first is what the others are compared with.
        moments: when they are compared, by probe.
        gains: one for each of the denoising probe's moments.
        bounds: steps (K,) and held-out bound in nats (K,), by label.
        steps: to the first run's last bound, by label.
        other_seeds: labels of the runs that differ from the first in nothing but seeds.
    """

    runs: list[Run]
    moments: Mapping[str, list[Moment]]
    gains: list[Gains]
    bounds: Mapping[str, tuple[np.ndarray, ClusteredMean]]
    steps: Mapping[str, StepsToReach]
    other_seeds: frozenset[str]

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def skills(self) -> Mapping[str, np.ndarray]:
        """Skill of each run over ``common_levels``, where the denoising probes' own levels differ; by label."""
        levels, found = self.common_levels, {}
        for label, record in self.moments[PROBE][0].records.items():
            curve = record.curves["denoising_skill"]
            found[label] = np.interp(levels, curve.log_snr, curve.value)
        return found

    @property
    def common_levels(self) -> np.ndarray:
        """Log-SNR at multiples of 0.75 within what the denoising probes of all runs have measured."""
        curves = [record.curves["denoising_skill"].log_snr for record in self.moments[PROBE][0].records.values()]
        low, high = max(each.min() for each in curves), min(each.max() for each in curves)
        return LOG_SNR_SPACING * np.arange(np.ceil(low / LOG_SNR_SPACING), np.floor(high / LOG_SNR_SPACING) + 1)

    @property
    def of_chance(self) -> bool:
        """Return whether seeds are all that tells the runs apart, so that none of them can be the better one."""
        return len(self.other_seeds) == len(self.runs) - 1


def compare(runs: list[Run]) -> Comparison:
    """Compute all of it, from runs that are comparable."""
    when = {probe: moments(runs, probe) for probe in runs[0].records}
    seeds = frozenset(run.label for run in runs[1:] if only_seeds_differ(runs[0].directory, run.directory))
    if PROBE not in when or not same_levels(runs, PROBE):
        return Comparison(runs, when, [], {}, {}, seeds)
    last = runs[0].records[PROBE][-1]
    cluster, target = image_of_draw(last), bound_per_draw(last)
    bounds, steps = {}, {}
    for run in runs:
        at = np.array(steps_of(run.records[PROBE]))
        per_draw = np.stack([bound_per_draw(record) for record in run.records[PROBE]])
        bounds[run.label] = (at, clustered_mean(per_draw, cluster))
        excess = clustered_mean(per_draw - target, cluster)
        steps[run.label] = steps_to_reach(at, excess.value, excess.half_width)
    return Comparison(runs, when, [_gains(moment, cluster) for moment in when[PROBE]], bounds, steps, seeds)


def _gains(moment: Moment, cluster: np.ndarray) -> Gains:
    (first, *others), labels = moment.records.values(), list(moment.records)[1:]
    nats, errors, other_errors = nats_of(first), errors_of(first), [errors_of(record) for record in others]
    levels = [clustered_mean(nats[:, None] * (errors - other), cluster) for other in other_errors]
    bands = gains_by_band(log_snr_of(first), errors, other_errors, cluster, nats)
    return Gains(dict(zip(labels, levels, strict=True)), dict(zip(labels, bands, strict=True)))
