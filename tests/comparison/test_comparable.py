"""Which records of which runs are laid beside each other, and which are refused."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from diffusers import DDIMScheduler

from ldmprobe import LatentCodec, RecordStore, write_comparison
from ldmprobe.comparison.compare import TABLE
from ldmprobe.comparison.findings import compare
from ldmprobe.tracking.comparable import comparable, moments, read_runs
from tests.comparison.runs import copied, fit
from tests.helpers import refused


def test_runs_are_compared_at_the_last_common_step_and_at_their_last(runs_dir):
    first, other = runs = read_runs([runs_dir / "plain", runs_dir / "starved"])
    common, last = moments(runs, "denoising")
    assert [record.step for record in common.records.values()] == [4, 4]
    assert [record.step for record in last.records.values()] == [6, 4]
    assert (common.description, last.description) == ("step 4, the last in common", "each run's last step")
    (only,) = moments(read_runs([runs_dir / "starved", runs_dir / "other_seed"]), "ddim")
    assert only.description == "step 4, the last of every run"
    # Untrained networks are no common step.
    shifted = [
        dataclasses.replace(record, step=record.step and record.step + 1) for record in other.records["denoising"]
    ]
    other = dataclasses.replace(other, records={**other.records, "denoising": shifted})
    assert [moment.name for moment in moments([first, other], "denoising")] == ["last"]


def test_families_lie_over_each_other_by_log_snr_without_pairs(runs_dir, tmp_path):
    """Another schedule, and a sampler's other steps: nothing is paired, and skill is compared where both have it."""
    other = fit(tmp_path / "cosine", max_steps=4, scheduler=DDIMScheduler(beta_schedule="squaredcos_cap_v2"))
    page = write_comparison([runs_dir / "starved", other], tmp_path / "out").read_text()
    assert "could not be drawn" not in page.lower()
    comparison = compare(read_runs([runs_dir / "starved", other]))
    assert comparison.gains == []
    levels, skills = comparison.common_levels, comparison.skills
    curves = [record.curves["denoising_skill"] for record in comparison.moments["denoising"][0].records.values()]
    assert levels[0] >= max(curve.log_snr.min() for curve in curves)
    assert levels[-1] <= min(curve.log_snr.max() for curve in curves)
    difference = np.abs(skills["cosine"] - skills["starved"])
    assert f"{difference.max():.3f}" in page
    assert "do not compare" in page
    table = pd.read_parquet(tmp_path / "out" / TABLE)
    assert not table.metric.str.startswith("gain_nats").any()
    assert {"denoising_skill", "step_kl"} <= set(table.metric)


def test_probes_that_are_not_comparable_are_refused_by_the_parts_that_differ(runs_dir, tmp_path):
    settings = {"ddim": {"seed": 1, "num_reference": 200}, "denoising": {"num_draws": 80}}
    other = fit(tmp_path / "other", **settings, codec=LatentCodec(scale=2.0))
    denoising = copied(other, tmp_path / "denoising", without="ddim")
    for run, parts in ((other, ("samples", "reference", "codec")), (denoising, ("held_out",))):
        differing = "".join(rf"(?=.*\b{part} \()" for part in parts)
        with refused(rf"probes of .*plain and .*{run.name} are not comparable; what differs is {differing}"):
            write_comparison([runs_dir / "plain", runs_dir / "starved", run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: {"per_sample": {}}, r"denoising record of step 0 in .*other lacks the errors of its draws"),
        (lambda record: {"provenance": {**record.provenance, "num_images": 64}}, r"what differs is held_out \(held-out images, num_images"),
    ],
    ids=["without_errors", "under_the_same_draws"],
)  # fmt: skip
def test_records_that_cannot_be_paired_are_refused(runs_dir, tmp_path, change, message):
    for record in RecordStore(runs_dir / "starved").read("denoising"):
        RecordStore(tmp_path / "other").append(dataclasses.replace(record, **change(record)))
    with refused(message):
        read_runs([runs_dir / "plain", tmp_path / "other"])


def test_earlier_records_measured_otherwise_are_left_out(runs_dir):
    records = RecordStore(runs_dir / "plain").read("ddim")
    other = dataclasses.replace(records[0], fingerprints={**records[0].fingerprints, "grid": "another"})
    assert comparable([other, *records[1:]]) == records[1:]


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["plain"], None, "Got 1 run; expected two or more"),
        (["plain", "starved/../plain"], None, "are the same run; give each run once"),
        (["plain", "nowhere"], None, r"nowhere is not a directory; expected the directory of a run"),
        (["plain", "."], None, "There are no probe records in"),
        (["plain", "starved"], ["a"], "Got 1 labels for 2 runs"),
        (["plain", "starved"], ["a", "a"], "expected different ones"),
        (["plain", "starved"], ["a", " "], "none empty"),
    ],
)
def test_runs_are_two_or_more_each_once_with_a_label_of_its_own(runs_dir, names, labels, message):
    with refused(message):
        read_runs([runs_dir / name for name in names], labels)


def test_runs_need_a_probe_in_common(runs_dir, tmp_path):
    runs = [
        copied(runs_dir / "plain", tmp_path / kept, without=left_out)
        for kept, left_out in (("ddim", "denoising"), ("denoising", "ddim"))
    ]
    with refused(r"no probe in common \(.*ddim: ddim; .*denoising: denoising\)"):
        read_runs(runs)


def test_runs_of_one_name_are_told_apart_by_their_parents(runs_dir, tmp_path):
    runs = [copied(runs_dir / "starved", tmp_path / seed / "uniform") for seed in ("seed0", "seed1")]
    assert [run.label for run in read_runs(runs)] == ["seed0/uniform", "seed1/uniform"]
    assert [run.label for run in read_runs(runs, ["a", "b"])] == ["a", "b"]
