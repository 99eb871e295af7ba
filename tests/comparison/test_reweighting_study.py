"""The script of a study, on real short runs."""

import re
from itertools import cycle
from pathlib import Path

import pandas as pd
import pytest
import yaml

import reweighting_study as script
from ldmprobe.configuration.cli import LDMProbeCLI
from study.jobs import Job, start_command
from study.statistics import BOUND, SECONDS
from tests.helpers import tiny_unet_settings
from tests.run_config import component
from tests.training import killing

STUDIES = Path(__file__).resolve().parents[2] / "configs" / "studies"
PLANS = {name: yaml.safe_load((STUDIES / f"{name}.yaml").read_text()) for name in ("digits", "cifar10")}
METHODS = PLANS["digits"]["methods"]
BUILT = [
    *(("digits", *each) for each in zip(METHODS, cycle(PLANS["digits"]["candidates"]), strict=False)),
    *(("cifar10", "probe-guided", candidate) for candidate in PLANS["cifar10"]["candidates"]),
]


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
