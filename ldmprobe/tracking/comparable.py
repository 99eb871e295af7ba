"""Runs that may be compared: their probes measured the same data with the same noise, and for paired differences the
same noise levels, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.probing.denoising_record import PROBE, is_whole
from ldmprobe.tracking.history import RecordSeries, comparable_series, steps_of

_PARTS = {
    "samples": "num_samples, guidance, prompts, seed, latent shape",
    "reference": "real latents: training data, num_reference",
    "held_out": "held-out images, num_images, num_draws, seed",
    "codec": "autoencoder and its scale",
    "features": "feature network and its weights",
    "real_images": "the real images that samples are compared with",
}


@dataclass(frozen=True)
class Run:
    """A run's records, by probe and in order of training step: those measured as its last one was.

    They may be many and hold many images; go through them one at a time.

    Attributes:
        label: what it is called; no two runs' are the same.
    """

    label: str
    directory: Path
    records: Mapping[str, Sequence[ProbeRecord]]


@dataclass(frozen=True)
class Moment:
    """A record of each run, to be laid side by side.

    Attributes:
        name: "common", at one and the same training step, or "last", each run's last.
        records: by run's label.
    """

    name: str
    records: Mapping[str, ProbeRecord]

    @property
    def description(self) -> str:
        steps = [record.step for record in self.records.values()]
        if self.name == "common":
            return f"step {steps[0]:,}, the last in common"
        return "each run's last step" if len(set(steps)) > 1 else f"step {steps[0]:,}, the last of every run"


def read_runs(directories: Sequence[Path], labels: Sequence[str] | None = None) -> list[Run]:
    """The runs in ``directories``, with the probes that all of them have. Noise levels and samplers may differ.

    Raises:
        ConfigurationError: fewer than two, one twice, one without records, labels that do not fit, or probes that are
            not comparable.
    """
    if len(directories) < 2:
        raise ConfigurationError(f"Got {len(directories)} run; expected two or more run directories to compare.")
    seen: dict[Path, Path] = {}
    for directory in directories:
        if not directory.is_dir():
            raise ConfigurationError(
                f"{directory} is not a directory; expected the directory of a run, with `probes/`."
            )
        if (first := seen.setdefault(directory.resolve(), directory)) is not directory:
            raise ConfigurationError(f"{first} and {directory} are the same run; give each run once.")
    found = [_records(directory) for directory in directories]
    shared = [probe for probe in found[0] if all(probe in records for records in found)]
    if not shared:
        has = "; ".join(f"{d}: {', '.join(r) or 'none'}" for d, r in zip(directories, found, strict=True))
        raise ConfigurationError(f"The runs have no probe in common ({has}); expected the same in each.")
    runs = [
        Run(label, directory, {probe: records[probe] for probe in shared})
        for label, directory, records in zip(_labels(directories, labels), directories, found, strict=True)
    ]
    for run in runs:
        _refuse_incomplete(run)
        for probe in shared:
            _refuse_different(probe, runs[0], run)
    return runs


def moments(runs: Sequence[Run], probe: str) -> list[Moment]:
    """When to compare: at the last step that all runs were probed at, if they were trained for more, and at each run's
    last. The first is the fairer; untrained networks (step 0) are not compared.
    """
    last = Moment("last", {run.label: run.records[probe][-1] for run in runs})
    if len({record.step for record in last.records.values()}) == 1:
        return [last]
    steps = {run.label: steps_of(run.records[probe]) for run in runs}
    common = set.intersection(*(set(each) for each in steps.values())) - {0}
    if not common:
        return [last]
    chosen = {run.label: run.records[probe][steps[run.label].index(max(common))] for run in runs}
    return [Moment("common", chosen), last]


def comparable(records: Sequence[ProbeRecord]) -> list[ProbeRecord]:
    """Return the records that were measured as the last one was."""
    return [record for record in records if record.fingerprints == records[-1].fingerprints]


def _records(directory: Path) -> dict[str, RecordSeries]:
    """Return the records of the probes that are measured alike in two runs: a record without fingerprints is of one run
    alone.
    """
    store = RecordStore(directory)
    if not (found := comparable_series(store)):
        raise store.no_records
    return {probe: series for probe, series in found.items() if series[-1].fingerprints}


def _refuse_incomplete(run: Run) -> None:
    for record in run.records.get(PROBE, []):
        if not is_whole(record):
            raise ConfigurationError(
                f"The {PROBE} record of step {record.step} in {run.directory} lacks the errors of its draws, which "
                "paired differences are made of; it is damaged. Probe that run again."
            )


def _refuse_different(probe: str, first: Run, other: Run) -> None:
    expected, got = (_measured_by(run.records[probe][-1]) for run in (first, other))
    differing = [part for part in {**expected, **got} if expected.get(part) != got.get(part)]
    if differing:
        parts = "; ".join(f"{part} ({_PARTS[part]})" if part in _PARTS else part for part in differing)
        raise ConfigurationError(
            f"The {probe} probes of {first.directory} and {other.directory} are not comparable; what differs is "
            f"{parts}. Give both runs the same, or compare only runs that have."
        )


def same_levels(runs: Sequence[Run], probe: str) -> bool:
    """Return whether a probe measured the same noise levels in all runs."""
    return len({run.records[probe][-1].fingerprints.get("grid") for run in runs}) == 1


def _measured_by(record: ProbeRecord) -> dict[str, object]:
    """Return what has to be equal: not the noise levels, nor the way samples were drawn along them, which families of
    processes do not share.
    """
    known, parts = record.provenance, dict(record.fingerprints)
    parts.pop("grid", None)
    found: dict[str, object] = {**parts}
    if found.pop("sampler", None) is not None:
        found["samples"] = [known.get(key) for key in ("num_samples", "guidance", "prompts", "seed", "latent_shape")]
    if "held_out" in found:
        # How many images the draws go round is no part of the fingerprint, but pairs and clusters hang on it.
        found["held_out"] = (found["held_out"], known.get("num_images"))
    return found


def _labels(directories: Sequence[Path], labels: Sequence[str] | None) -> list[str]:
    """Return the labels as given; by default the directories' names, with as many parents as it takes to tell them
    apart.
    """
    if labels is not None:
        if len(labels) != len(directories):
            raise ConfigurationError(
                f"Got {len(labels)} labels for {len(directories)} runs; expected one each, in the same order."
            )
        if len({*labels}) < len(labels) or not all(label.strip() for label in labels):
            raise ConfigurationError(f"Got labels {', '.join(map(repr, labels))}; expected different ones, none empty.")
        return list(labels)
    parts = [directory.resolve().parts for directory in directories]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]
