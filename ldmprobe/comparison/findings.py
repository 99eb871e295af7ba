"""What is found when runs are laid side by side: paired gains, bounds over training, steps to the same quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ldmprobe.analysis.bands import LogSNRBand, bands_of
from ldmprobe.analysis.comparison import (
    BandGain,
    ClusteredMean,
    StepsToReach,
    clustered_mean,
    gains_by_band,
    steps_to_reach,
)
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.comparison.configuration import only_seeds_differ
from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.comparable import PROBES, Moment, Run, moments
from ldmprobe.tracking.history import steps_of


@dataclass(frozen=True)
class Gains:
    """Of the other runs over the first, by label, at one moment: per level (L,), and by band with the total at the end."""

    levels: Mapping[str, ClusteredMean]
    bands: Mapping[str, list[BandGain]]


@dataclass(frozen=True)
class Comparison:
    """What is known of the runs.

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
    def of_chance(self) -> bool:
        """Whether seeds are all that tells the runs apart, so that none of them can be the better one."""
        return len(self.other_seeds) == len(self.runs) - 1


def compare(runs: list[Run]) -> Comparison:
    """All that is computed, from runs that are comparable."""
    when = {probe: moments(runs, probe) for probe in PROBES if probe in runs[0].records}
    seeds = frozenset(run.label for run in runs[1:] if only_seeds_differ(runs[0].directory, run.directory))
    if "denoising" not in when:
        return Comparison(runs, when, [], {}, {}, seeds)
    last = runs[0].records["denoising"][-1]
    cluster = np.arange(last.provenance["num_draws"]) % last.provenance["num_images"]
    target = _bound_per_draw(last)
    bounds, steps = {}, {}
    for run in runs:
        at = np.array(steps_of(run.records["denoising"]))
        per_draw = np.stack([_bound_per_draw(record) for record in run.records["denoising"]])
        bounds[run.label] = (at, clustered_mean(per_draw, cluster))
        excess = clustered_mean(per_draw - target, cluster)
        steps[run.label] = steps_to_reach(at, excess.value, excess.half_width)
    return Comparison(runs, when, [_gains(moment, cluster) for moment in when["denoising"]], bounds, steps, seeds)


def band_shares(record: ProbeRecord) -> list[tuple[LogSNRBand, float]]:
    """How the recoverable excess is spread over bands of log-SNR; empty for a record of another probe."""
    if "denoising_mse" not in record.curves:
        return []
    bands = bands_of(record.curves["denoising_mse"].log_snr)
    return [(band, record.scalars[f"imbalance_share/logsnr{band.low:+03.0f}"]) for band in bands]


def _bound_per_draw(record: ProbeRecord) -> np.ndarray:
    """In nats, (N,): their mean is the record's ``denoising_bound_nats``."""
    return _nats(record) @ _errors(record)


def _errors(record: ProbeRecord) -> np.ndarray:
    """Per level and draw, (L, N); NaN where a network has diverged."""
    value = record.per_sample["denoising_errors"].value
    return np.where(np.isfinite(value), value, np.nan)


def _nats(record: ProbeRecord) -> np.ndarray:
    """Per unit of error at each level, (L,)."""
    return nats_per_error(record.per_sample["denoising_errors"].log_snr, float(record.provenance["dimension"]))


def _gains(moment: Moment, cluster: np.ndarray) -> Gains:
    (first, *others), labels = moment.records.values(), list(moment.records)[1:]
    nats = _nats(first)
    log_snr, errors = first.per_sample["denoising_errors"].log_snr, _errors(first)
    other_errors = [_errors(record) for record in others]
    levels = [clustered_mean(nats[:, None] * (errors - other), cluster) for other in other_errors]
    bands = gains_by_band(log_snr, errors, other_errors, cluster, nats)
    return Gains(dict(zip(labels, levels, strict=True)), dict(zip(labels, bands, strict=True)))
