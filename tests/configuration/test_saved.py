"""A saved config.yaml starts another run elsewhere; changed on resume, it is told or refused, and stays true."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from ldmprobe.cli import main
from tests.test_bad_input import _config, _files, _fit, _refused

CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "."}}
ONE_CYCLE = {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 1e-3, "total_steps": 2}}
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}


def config(lr_scheduler: dict | None = None, **model) -> dict:
    settings = _config()
    settings["model"]["init_args"] |= {"optimizer": ADAMW, "lr_scheduler": lr_scheduler, **model}
    settings["trainer"] |= {"logger": CSV, "log_every_n_steps": 1}
    return settings


def tuned(name: str, **init_args) -> dict:
    settings = config()
    tuner = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": init_args}
    return settings | {"trainer": {**settings["trainer"], "callbacks": [*settings["trainer"]["callbacks"], tuner]}}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of this configuration in runs/one, trained once for all tests that go on with it."""
    trained: dict[str, Path] = {}

    def copied(settings: dict) -> None:
        key = yaml.safe_dump(settings)
        if key not in trained:
            trained[key] = tmp_path_factory.mktemp("begun") / "one"
            assert _fit(settings) == 0
            shutil.copytree("runs/one", trained[key])
        else:
            shutil.copytree(trained[key], "runs/one")

    return copied


def saved(run: str, name: str = "config.yaml") -> dict:
    return yaml.safe_load((Path("runs") / run / name).read_text())


def last(run: str = "one") -> dict:
    return torch.load(f"runs/{run}/checkpoints/last.ckpt", weights_only=True)


def test_a_saved_configuration_starts_another_run_that_writes_nothing_into_the_first(begun):
    begun(config())
    before = _files()
    assert main(["fit", "--config", "runs/one/config.yaml", "--run_dir", "runs/two"]) == 0
    assert {path: content for path, content in _files().items() if path in before} == before
    names = [
        {path.relative_to(f"runs/{run}") for path in _files() if path.is_relative_to(f"runs/{run}")}
        for run in ("one", "two")
    ]
    assert names[0] == names[1]
    assert {Path("config.yaml"), Path("checkpoints/last.ckpt")} < names[0]
    assert any(path.name == "metrics.csv" for path in names[0])
    assert saved("two") == saved("one") | {"run_dir": "runs/two"}


def test_a_run_that_went_on_is_not_gone_on_with_by_its_configuration(begun, capsys):
    begun(config())
    assert _fit(config(), "--ckpt_path=last", "--trainer.max_steps=3") == 0
    assert main(["fit", "--config", "runs/one/config.yaml", "--run_dir", "runs/two"]) == 0
    assert capsys.readouterr().err.count("Restor") <= 2
    assert last("two")["global_step"] == 3
    assert "runs/one/checkpoints/last.ckpt" in Path("runs/one/config.yaml").read_text()  # as a comment
    assert "ckpt_path" not in saved("one")


def test_places_within_another_run_are_refused_as_older_configurations_have_them(begun, capsys):
    begun(config())
    Path("runs/one/report.html").touch()
    for key, folder in (("callbacks.dirpath", "runs/one/checkpoints"), ("logger.save_dir", "runs/one")):
        _refused(capsys, config(), folder, "runs/two", arguments=("--run_dir=runs/two", f"--trainer.{key}={folder}"))


def test_what_is_changed_on_resume_is_told_with_its_effect_and_the_file_tells_the_truth(begun, capsys):
    begun(config())
    first = saved("one")
    capsys.readouterr()
    changed = config()
    changed["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}
    changed["data"]["init_args"]["batch_size"] = 2
    assert _fit(changed, "--ckpt_path=last", "--trainer.max_steps=4", "--seed_everything=5") == 0
    told = [line.strip() for line in capsys.readouterr().err.splitlines() if " → " in line]
    assert sorted(told) == [
        "data.init_args.batch_size: 4 → 2, from here on",
        "model.init_args.optimizer.init_args.lr: 0.001 → 0.1, without effect",
        "seed_everything: 0 → 5, without effect",
        "trainer.max_steps: 2 → 4, from here on",
    ]
    assert {group["lr"] for group in last()["optimizer_states"][0]["param_groups"]} == {1e-3}
    assert saved("one")["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-3
    assert saved("one")["data"]["init_args"]["batch_size"] == 2
    assert saved("one")["seed_everything"] == 0
    assert saved("one", "config.1.yaml") == first
    assert _fit(changed, "--ckpt_path=last", "--trainer.max_steps=4") == 0  # as it is in the file, but for lr
    told = [line for line in capsys.readouterr().err.splitlines() if " → " in line]
    assert told == ["  model.init_args.optimizer.init_args.lr: 0.001 → 0.1, without effect"]
    assert not Path("runs/one/config.2.yaml").exists()


@pytest.mark.parametrize(
    ("before", "after", "texts"),
    [
        (config(), config(optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-3}}), ["AdamW", "SGD"]),
        (config(), config(optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}), ["AdamW", "adam.Adam"]),
        (config(), config(ONE_CYCLE), ["scheduler none", "OneCycleLR"]),
        (config(ONE_CYCLE), config(), ["OneCycleLR", "configuration none"]),
        (config(ONE_CYCLE), config(ONE_CYCLE), ["total_steps 2", "max_steps is 3", "`max_steps: 2`"]),
        (
            config(ONE_CYCLE),
            config({**ONE_CYCLE, "init_args": {"max_lr": 1e-3, "total_steps": 9}}),
            ["total_steps 2", "9 are without effect"],
        ),
        (
            config(codec={"class_path": "ldmprobe.LatentCodec", "init_args": {"scale": 1.0}}),
            config(codec={"class_path": "ldmprobe.LatentCodec", "init_args": {"scale": 0.5}}),
            ["codec.scale"],
        ),
        (config(), config(timesteps={"class_path": "ldmprobe.LossSecondMoment"}), ["timesteps"]),
        (config(), tuned("LearningRateFinder", update_attr=False), ["LearningRateFinder", "step 0", "last.ckpt"]),
        (config(), tuned("BatchSizeFinder"), ["BatchSizeFinder", "step 0", "last.ckpt"]),
    ],
    ids=[
        "optimizer",
        "nearly the same optimizer",
        "scheduler added",
        "scheduler left out",
        "too long",
        "longer schedule",
        "scale",
        "sampler",
        "tuner of the rate",
        "tuner of the batch",
    ],
)  # fmt: skip
def test_what_cannot_be_changed_is_refused_and_nothing_is_overwritten(before, after, texts, begun, capsys):
    begun(before)
    capsys.readouterr()
    _refused(capsys, after, *texts, arguments=("--ckpt_path=last", "--trainer.max_steps=3"))


def test_a_schedule_that_ends_before_training_is_refused_at_once(capsys):
    _refused(capsys, config(ONE_CYCLE), "`total_steps: 5`", arguments=("--trainer.max_steps=5",))


def test_a_finder_of_a_rate_that_the_module_does_not_have_is_refused(capsys):
    _refused(capsys, tuned("LearningRateFinder"), "LearningRateFinder", "LatentDiffusion", "`update_attr: false`")
