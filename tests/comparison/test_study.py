"""A study's statistics on curves with known answers; its script on real short runs."""

import re
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

import reweighting_study as script
from ldmprobe import BalancedTimesteps, RecordStore
from ldmprobe.callbacks import DenoisingProbe, TimestepBalancer, TrainingClock
from ldmprobe.configuration.cli import LDMProbeCLI
from ldmprobe.tracking.charts.static import png
from study.figures import curves_figure, pareto_figure
from study.halving import better_half, mean_ranks, rung_seeds
from study.jobs import Job, start_command
from study.statistics import BOUND, FID, GINI, KID, RECOVERABLE, SECONDS, StudyRun, over_seeds, pareto_front, study
from study.tables import study_markdown, study_table
from tests.helpers import FLOAT64, refused, tiny_unet_settings
from tests.run_config import component
from tests.training import killing
from tests.training.test_latent_diffusion import digits, module, trainer

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "configs" / "studies"
PLANS = {name: yaml.safe_load((STUDIES / f"{name}.yaml").read_text()) for name in ("digits", "cifar10")}
METHODS = PLANS["digits"]["methods"]
BUILT = [
    *(("digits", *each) for each in zip(METHODS, cycle(PLANS["digits"]["candidates"]), strict=False)),
    *(("cifar10", "probe-guided", candidate) for candidate in PLANS["cifar10"]["candidates"]),
]


def straight_run(method, seed, bound, fid, seconds=100.0, bound_start=1000.0, fid_start=1000.0):
    """Bound and FID fall in straight lines over 100 steps, time goes evenly."""
    coarse, fine = np.array([0, 50, 100]), np.array([0, 25, 50, 75, 100])
    constant = {name: (fine, np.full(5, 0.5)) for name in (GINI, RECOVERABLE, "skill/0…+3")}
    return StudyRun(
        method,
        seed,
        {
            BOUND: (fine, np.linspace(bound_start, bound, 5)),
            FID: (coarse, np.linspace(fid_start, fid, 3)),
            KID: (coarse, np.linspace(1, 0.01, 3)),
            SECONDS: (fine, np.linspace(0, seconds, 5)),
            **constant,
        },
    )


# Method "a" is 20, 24 and 22 nats better than the baseline, seed by seed, and costs twice as much.
BASE = [straight_run("base", seed, bound, fid) for seed, bound, fid in ((0, 200, 10.0), (1, 240, 11.0), (2, 220, 12.0))]
A = [straight_run("a", seed, bound, fid, 200.0) for seed, bound, fid in ((0, 180, 5.0), (1, 216, 5.5), (2, 198, 7.0))]
B = [straight_run("b", seed, bound, fid) for seed, bound, fid in ((0, 300, 4.0), (1, 300, 4.1), (2, 310, 4.2))]
C = [straight_run("c", seed, bound, fid) for seed, bound, fid in ((0, 400, 20.0), (1, 410, 21.0), (2, 430, 20.5))]


@pytest.fixture(scope="module")
def known():
    return study([*BASE, *A, *B, *C], "base")


def of(study, name):
    return next(method for method in study.methods if method.name == name)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_intervals_over_seeds_are_students():
    values = [3.0, 5.0, 10.0, 4.0]
    found = over_seeds(values)
    interval = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    np.testing.assert_allclose([found.value - found.half_width, found.value + found.half_width], interval, **FLOAT64)
    assert np.isnan(over_seeds([3.0]).half_width)
    assert over_seeds([3.0]).value == 3.0


def test_differences_are_paired_by_seed_and_corrected_for_the_methods(known):
    difference = of(known, "a").difference[BOUND]
    np.testing.assert_allclose(difference.value, -22.0, **FLOAT64)
    p_values = [
        stats.ttest_rel([run.final(BOUND) for run in runs], [run.final(BOUND) for run in BASE]).pvalue
        for runs in (A, B, C)
    ]
    np.testing.assert_allclose(of(known, "b").difference[BOUND].value, np.mean([100, 60, 90]), **FLOAT64)
    adjusted = [float(of(known, name).difference[BOUND].p_value) for name in "abc"]
    np.testing.assert_allclose(adjusted, stats_holm(p_values), **FLOAT64)
    assert not of(known, "base").difference


def stats_holm(p_values):
    """By the book: the k-th smallest of m times m − k + 1, never less than the one before."""
    order, adjusted, least = np.argsort(p_values), np.zeros(len(p_values)), 0.0
    for rank, k in enumerate(order):
        least = adjusted[k] = max(least, min(1.0, (len(p_values) - rank) * p_values[k]))
    return adjusted


def test_a_seed_that_one_method_lacks_is_left_out_of_its_difference():
    found = of(study([*BASE, *A[:2]], "base"), "a")
    np.testing.assert_allclose(found.difference[BOUND].value, -22.0, **FLOAT64)
    assert found.seeds == [0, 1]


def test_steps_to_the_baselines_mean_end_are_where_the_line_crosses_it(known):
    # Targets: bound 220, FID 11; the bound of "a", seed 0, falls from 1000 to 180 over 100 steps.
    exact = [100 * (1000 - 220) / (1000 - end) for end in (180, 216, 198)]
    reached = of(known, "a").steps["bound"]
    np.testing.assert_allclose(reached.mean.value, np.mean(np.ceil(exact)), **FLOAT64)
    assert (reached.seeds, reached.of) == (3, 3)
    assert of(known, "b").steps["bound"].seeds == 0
    assert np.isnan(of(known, "b").steps["bound"].mean.value)
    assert of(known, "b").steps["FID"].seeds == 3
    # A seed of the baseline reaches the mean over seeds, another does not.
    assert of(known, "base").steps["bound"].seeds == 2


def test_both_means_at_one_and_the_same_step():
    at = np.array([0, 50, 100])
    curves = {
        BOUND: (at, np.array([9.0, 4.0, 1.0])),
        FID: (at, np.array([9.0, 1.0, 9.0])),
        SECONDS: (at, np.array([0.0, 1.0, 2.0])),
    }
    run = StudyRun("x", 0, curves)
    assert run.steps_to_reach({BOUND: 2.0}) == 84
    assert run.steps_to_reach({FID: 2.0}) == 44
    assert np.isnan(run.steps_to_reach({BOUND: 2.0, FID: 2.0}))
    assert run.steps_to_reach({BOUND: 4.0, FID: 2.0}) == 50


def test_cost_counts_seconds_and_not_steps(known):
    method = of(known, "a")
    np.testing.assert_allclose(method.seconds["bound"].mean.value, 2 * method.steps["bound"].mean.value, **FLOAT64)
    # The baseline takes 100 s; by then "a" is half way.
    np.testing.assert_allclose(
        method.equal_seconds[BOUND].value, np.mean([(1000 + e) / 2 for e in (180, 216, 198)]), **FLOAT64
    )
    np.testing.assert_allclose(of(known, "b").equal_seconds[FID].value, 4.1, **FLOAT64)


def test_pareto_front_and_who_is_worse_in_both(known):
    assert pareto_front({"a": (1, 3), "b": (2, 2), "c": (2, 3), "d": (3, 1), "e": (np.nan, 0)}) == {"a", "b", "d"}
    assert {method.name for method in known.methods if method.on_front} == {"a", "b"}
    assert of(known, "c").worse_than == ["base", "a", "b"]
    assert of(known, "base").worse_than == ["a"]
    assert of(known, "a").worse_than == []


def test_a_run_that_diverged_is_on_no_front_and_everything_is_still_written():
    lost = [straight_run("lost", seed, np.nan, np.nan) for seed in range(3)]
    found = study([*BASE, *A, *lost], "base")
    assert not of(found, "lost").on_front
    text = study_markdown(found, "lost")
    assert "not finite" in text
    assert "nan" not in text
    for figure in (pareto_figure(found), curves_figure(found)):
        assert png(figure).startswith(b"\x89PNG")


def test_halving_gives_each_rung_twice_the_seeds_and_half_the_candidates():
    seeds = [3, 1, 4, 0, 5]
    assert rung_seeds(1, seeds) == [seeds]
    assert rung_seeds(2, seeds) == [[3], seeds]
    assert rung_seeds(5, seeds) == [[3], [3, 1], seeds]
    assert rung_seeds(8, seeds) == [[3], [3, 1], [3, 1, 4, 0], seeds]


def test_the_better_half_is_that_of_the_mean_rank_in_both_metrics_over_seeds():
    finals = {
        "low bound": {0: (1.0, 9.0), 1: (1.0, 9.0)},  # ranks 1, 3; 1, 2
        "both": {0: (2.0, 5.0), 1: (2.0, 5.0)},  # 2, 1.5; 2, 1
        "diverged": {0: (np.nan, np.inf), 1: (np.nan, np.nan)},  # 4, 4; 3.5, 3.5
        "one seed": {0: (3.0, 5.0)},  # 3, 1.5; 3.5, 3.5: it failed
    }
    assert mean_ranks(finals) == {"low bound": 1.75, "both": 1.625, "diverged": 3.75, "one seed": 2.875}
    assert better_half(finals) == ["low bound", "both"]
    assert better_half({"a": {0: (1.0, 1.0)}, "b": {0: (1.0, 1.0)}, "c": {0: (1.0, 1.0)}}) == ["a"]
    assert better_half({"failed": {}, "ran": {0: (1.0, 1.0)}}) == ["ran"]
    assert better_half({"a": {}, "b": {}, "c": {}}) == ["a"]  # so that a method whose runs fail is told of as missing


def test_without_its_baseline_a_study_is_refused():
    with refused("baseline 'base' has no finished run"):
        study(A, "base")


# --- tables ----------------------------------------------------------------------------------------------------------


def test_markdown_tables_are_rectangular_and_say_what_is_missing(known):
    text = study_markdown(known, "digits", ["c, seed 4 failed with exit code 2"])
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
        assert len(table) == 2 + len(known.methods)
    assert "| a | 198 ± 45 | −22.0 ± 5.0 | 0.0" in text
    assert "never" in text
    assert "(2 of 3 seeds)" in text
    assert "Missing: c, seed 4 failed with exit code 2" in text
    alone = study_markdown(study([BASE[0], A[0]], "base"), "one seed")
    assert "nan" not in alone


def test_tidy_table_holds_every_number(known):
    table = study_table(known).to_pandas()
    assert len(table) == sum(len(values) for run in known.runs for _, values in run.curves.values())
    last = table[(table.metric == BOUND) & (table.step == 100)]
    assert last.groupby("method").value.mean()["a"] == pytest.approx(198)
    assert set(last[last.method == "a"][SECONDS]) == {200.0}


# --- the clock -------------------------------------------------------------------------------------------------------


def test_clock_counts_training_and_its_own_helpers_but_no_probes(tmp_path):
    probe = DenoisingProbe(2, num_images=16, num_draws=64, num_reference=128)
    balancer = TimestepBalancer(2, num_images=16, num_draws=32, num_reference=128)
    clock = TrainingClock(2)
    callbacks = [clock, probe, balancer]
    trainer(tmp_path, max_steps=4, callbacks=callbacks).fit(module(timesteps=BalancedTimesteps()), digits())
    records = RecordStore(tmp_path).read("clock")
    seconds = [record.scalars["training_seconds"] for record in records]
    assert [record.step for record in records] == [0, 2, 4]
    assert 0 == seconds[0] < seconds[1] < seconds[2]
    # At step 2 the balancer has decided at step 0 only; what it costs at step 2 is in the record of step 4.
    balance = [record.scalars["balance_seconds"] for record in RecordStore(tmp_path).read("balance")]
    own = [seconds[1] - balance[0], seconds[2] - balance[1]]
    assert 0 < own[0] < own[1] == pytest.approx(clock.state_dict()["seconds"])


def test_clock_behind_a_probe_is_refused(tmp_path):
    callbacks = [DenoisingProbe(2, num_images=16, num_draws=32, num_reference=128), TrainingClock(2)]
    with refused("after DenoisingProbe among the callbacks"):
        trainer(tmp_path, max_steps=1, callbacks=callbacks).fit(module(), digits())


# --- the script ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "method", "candidate"), BUILT)
def test_every_method_and_candidate_of_the_studies_builds(tmp_path, name, method, candidate):
    plan = script.read_plan(STUDIES / f"{name}.yaml", [])
    assert plan.methods == METHODS
    (tmp_path / "method.yaml").write_text(yaml.safe_dump(METHODS[method]))
    (tmp_path / "candidate.yaml").write_text(yaml.safe_dump(plan.candidates[candidate]))
    codec = "--model.init_args.codec.init_args.autoencoder=builtin:digits"
    configs = [f"--config={path}" for path in (*plan.base, tmp_path / "method.yaml", tmp_path / "candidate.yaml")]
    cli = LDMProbeCLI([*configs, codec, f"--run_dir={tmp_path / 'run'}"], run=False)
    kinds = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert kinds[:3] == ["TrainingClock", "DenoisingProbe", "SampleQuality"]
    for part, given in METHODS[method].get("model", {}).get("init_args", {}).items():
        assert type(getattr(cli.model, part)).__name__ == given["class_path"].rpartition(".")[2]
    found = cli.model.configure_optimizers()
    if candidate.startswith("constant"):
        assert found.param_groups[0]["lr"] == float(candidate.removeprefix("constant-"))
    else:
        schedule = found["lr_scheduler"]["scheduler"]
        assert schedule.total_steps == cli.trainer.max_steps
        peak = candidate.removeprefix("cycle-").removesuffix("-beta2-0.95")
        assert found["optimizer"].param_groups[0]["max_lr"] == pytest.approx(float(peak))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"baseline": "none"}, "baseline 'none'"),
        ({"seeds": [0, 0]}, r"seeds \[0, 0\]"),
        ({"base": ["missing.yaml"]}, "missing.yaml, which is no file"),
        ({"methods": {"a/b": {}}}, "method 'a/b'"),
        ({"candidates": {"a/b": {}}}, "candidate 'a/b'"),
        ({"candidates": {}}, "candidates {}"),
        ({"candidates": {1.0e-3: {}}}, "candidate 0.001: {}; expected a name .in quotes if it is a number."),
        ({"candidates": {"..": {}}}, "candidate '..'"),
        ({"more": 1}, "expected the keys base, baseline, seeds, methods"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path, capsys, changed, told):
    path = write_study(tmp_path, **changed)
    assert script.main([str(path), "--out", str(tmp_path / "out")]) == 2
    assert re.search(told, capsys.readouterr().err)


def write_study(folder, **changed):
    small = {"every_n_steps": 3, "num_samples": 70, "num_steps": 2, "num_real": 100, "kid_subset_size": 20}
    callbacks = [
        component("TrainingClock", every_n_steps=3),
        component("DenoisingProbe", every_n_steps=3, num_images=16, num_draws=32, num_reference=128),
        component("SampleQuality", feature_network="builtin:digits", **small),
        component("lightning.pytorch.callbacks.ModelCheckpoint", every_n_train_steps=3, save_top_k=0, save_last=True),
    ]
    base = yaml.safe_load((STUDIES / "digits_base.yaml").read_text())
    base["model"]["init_args"]["network"]["init_args"] = tiny_unet_settings(num_class_embeds=11)
    base["trainer"] |= {"max_steps": 6, "callbacks": callbacks}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    methods = {"uniform": {}, "min-snr-5": METHODS["min-snr-5"]}
    path = folder / "tiny.yaml"
    path.write_text(
        yaml.safe_dump({"base": ["base.yaml"], "baseline": "uniform", "seeds": [0, 1], "methods": methods} | changed)
    )
    return path


class Forked:
    """A run as ``subprocess.Popen`` shows it, forked from a server that has imported everything."""

    def __init__(self, job, argv, *prepare):
        job.folder.mkdir(parents=True, exist_ok=True)
        self.process = killing.start(argv, job.log, *prepare)
        self.terminate, self.wait = self.process.terminate, self.process.join

    def poll(self):
        return self.process.exitcode

    @property
    def returncode(self):
        return self.process.exitcode


def test_a_job_is_a_command_on_one_thread_with_its_output_in_its_log(tmp_path):
    job = Job("versions", tmp_path / "job")
    assert start_command(job, ["--version"]).wait() == 0
    assert job.log.read_text().startswith("ldmprobe ")
    assert start_command(job, ["no-command"]).wait() == 2
    assert "no-command" in job.log.read_text()


def test_study_tells_of_failed_runs_goes_on_and_repeats_nothing(tmp_path, capsys, monkeypatch):
    deaths = []

    def start(plan, job):
        argv = script.fit_arguments(plan, job)
        if (job.method, job.seed) == ("uniform", 1) and not deaths:
            deaths.append(job)
            step = "ldmprobe.training.latent_diffusion:LatentDiffusion.training_step"
            return Forked(job, argv, killing.signal_at_call, step, 5)  # after the checkpoint of step 3
        return Forked(job, argv)

    path, out = write_study(tmp_path), tmp_path / "out"
    torn = out / "runs" / "min-snr-5" / "seed-1" / "checkpoints" / "last.ckpt"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"torn")
    monkeypatch.setattr(script, "start", start)
    command = [str(path), "--out", str(out), "--processes", "2"]
    assert script.main(command) == 1
    said = capsys.readouterr().out
    assert "uniform, seed 1 failed with exit code -9" in said
    assert "min-snr-5, seed 1 failed with exit code 2. The end of" in said
    assert "No checkpoint of the run" in said
    assert "Missing: min-snr-5, seed 1 failed with exit code 2" in (out / "table.md").read_text()

    torn.unlink()
    before = {file: file.stat().st_mtime_ns for file in out.rglob("probes/*.parquet")}
    assert len(before) == 3 * (3 + 3 + 2)  # probes, and when: of two runs all, of the killed one those of steps 0 and 3
    assert script.main(command) == 0
    assert "4 runs, 2 of them finished." in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in before}
    table = pd.read_parquet(out / "study.parquet")
    assert {*zip(table.method, table.seed, strict=True)} == {(m, s) for m in ("uniform", "min-snr-5") for s in (0, 1)}
    first = table[(table.metric == BOUND) & (table.step == 0)].groupby("seed").value.nunique()
    assert first.tolist() == [1, 1]  # a seed's network is the same for both methods
    assert table[(table.metric == BOUND) & (table.step == 6)].value.nunique() == 4
    killed = table[(table.method == "uniform") & (table.seed == 1) & (table.metric == SECONDS)]
    assert killed.value.is_monotonic_increasing
    assert killed.step.tolist() == [0, 3, 6]
    assert all((out / name).exists() for name in ("pareto.png", "curves.png"))

    settings = {"uniform": {}, "min-snr-5": METHODS["p2"]}
    assert script.main([str(write_study(tmp_path, methods=settings)), "--out", str(out)]) == 2
    told = "weighting.class_path: ldmprobe.MinSNR, now ldmprobe.P2"
    assert told in capsys.readouterr().err


def test_a_method_has_its_best_candidate_and_the_others_cost_no_further_seed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "start", lambda plan, job: Forked(job, script.fit_arguments(plan, job)))
    candidates = {
        name: {"model": {"init_args": {"optimizer": {"init_args": {"lr": rate}}}}}
        for name, rate in (("no-rate", 1e-9), ("fit", 3e-3), ("wild", -1.0))
    }
    path = write_study(tmp_path, methods={"uniform": {}}, candidates=candidates)
    command = [str(path), "--out", str(tmp_path / "out"), "--processes", "2"]
    assert script.main(command) == 1
    assert "Missing: uniform wild, seed 0 failed" in capsys.readouterr().out
    runs = sorted(str(mark.parent.relative_to(tmp_path / "out" / "runs")) for mark in tmp_path.rglob("finished"))
    assert runs == ["uniform/fit/seed-0", "uniform/fit/seed-1", "uniform/no-rate/seed-0"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| **uniform (fit)** |" in text
    tuning = text.splitlines()[-1]
    assert tuning.startswith("| uniform | ")
    assert re.findall(r"(\*\*)?[\d.,]+, [\d.,]+ \((\d)\)", tuning) == [("**", "2"), ("", "1")]
    assert tuning.endswith("| no run |")
    assert {*pd.read_parquet(tmp_path / "out" / "study.parquet").method} == {"uniform (fit)"}
    assert script.main([*command, "--table-only"]) == 1
    told = (tmp_path / "out" / "table.md").read_text()
    assert told == re.sub("wild, seed 0 failed with exit code .*", "wild, seed 0 is not finished", text)

    # Of a candidate that is alone in having run, the other seeds are trained.
    alone = {name: candidates[name] for name in ("wild", "fit")}
    path = write_study(tmp_path, methods={"uniform": {}}, candidates=alone)
    (tmp_path / "out" / "runs" / "uniform" / "fit" / "seed-1" / "finished").unlink()
    assert script.main([str(path), *command[1:]]) == 1
    assert "uniform fit, seed 1: finished" in capsys.readouterr().out
