"""Training from YAML: what is where afterwards, and going on with it."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from ldmprobe import ImageData, LatentDiffusion, RecordStore
from ldmprobe.cli import main
from ldmprobe.configuration.cli import LDMProbeCLI
from ldmprobe.training.checkpoint.write import AtomicCheckpointIO
from tests.helpers import refuses, tiny_unet_settings
from tests.optional import OPTIONAL
from tests.run_config import unet, written

GAUSSIAN = Path(__file__).resolve().parent.parent.parent / "configs" / "gaussian.yaml"
SMALL = {
    "DDIMProbe": {"num_samples": 8, "num_steps": 4, "num_reference": 64},
    "DenoisingProbe": {"num_images": 16, "num_draws": 32, "num_reference": 64},
}
_FOLDER = TemporaryDirectory()


def small() -> Path:
    """gaussian.yaml made tiny."""
    config = yaml.safe_load(GAUSSIAN.read_text())
    images = {"num_images": 200, "channels": 2, "size": 4}
    config["data"]["init_args"] |= {"dataset_kwargs": images, "batch_size": 8}
    config["model"]["init_args"]["network"] = unet(size=4)
    config["trainer"] |= {"val_check_interval": 4, "accelerator": "cpu"}
    for callback in config["trainer"]["callbacks"]:
        name = callback["class_path"].rpartition(".")[2]
        callback["init_args"] = callback.get("init_args", {}) | SMALL.get(name, {})
    return written(config, Path(_FOLDER.name) / "gaussian.yaml")


CONFIG = small()


def fit(run_dir, max_steps, *more):
    return main(["fit", "--config", str(CONFIG), f"--run_dir={run_dir}", f"--trainer.max_steps={max_steps}", *more])


def test_everything_of_a_run_is_in_its_directory(tmp_path, alone):
    assert fit(tmp_path / "run", 4) == 0
    assert not OPTIONAL & {*sys.modules}
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "probes", "checkpoints", "report.html", "reference.safetensors"} <= names
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["max_steps"] == 4
    assert {path.name for path in tmp_path.iterdir()} - {"hf_cache"} == {"run"}


def test_null_on_the_command_line_is_null(capsys):
    network = "--model.init_args.network.init_args"
    given = [
        f"{network}.num_class_embeds=10",
        f"{network}.num_class_embeds=null",
        f"{network}.class_embed_type",
        "null",
    ]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(CONFIG), *given, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["network"]["init_args"]
    assert printed["num_class_embeds"] is printed["class_embed_type"] is None


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_with_what_to_write(tmp_path, capsys):
    assert fit(tmp_path / "run", 4, "--trainer.accelerator=gpu", "--trainer.devices=4") == 2
    assert "no GPU here for `--trainer.accelerator gpu`; write `--trainer.accelerator cpu" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_more_gpus_than_there_are_are_told_with_what_to_write(tmp_path, capsys):
    assert fit(tmp_path / "run", 4, "--trainer.accelerator=gpu", "--trainer.devices=99") == 2
    assert f"write `--trainer.devices {torch.cuda.device_count()}`" in capsys.readouterr().err


def test_module_and_data_work_in_a_lightning_cli_of_ones_own(tmp_path):
    network = {"class_path": "diffusers.UNet2DModel", "init_args": tiny_unet_settings(channels=1)}
    settings = {
        "model": {"network": network, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}},
        "data": {"dataset": "builtin:digits", "batch_size": 8, "check_rows": 5},
        "trainer": {
            "max_steps": 2,
            "check_val_every_n_epoch": None,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "default_root_dir": str(tmp_path / "run"),
            "callbacks": {
                "class_path": "DDIMProbe",
                "init_args": {"every_n_steps": 2, "num_samples": 8, "num_steps": 2, "num_reference": 256},
            },
        },
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    LightningCLI(
        LatentDiffusion, ImageData, args=["fit", "--config", str(tmp_path / "own.yaml")], save_config_callback=None
    )
    assert [record.step for record in RecordStore(tmp_path / "run").read("ddim")] == [0, 2]


def test_checkpoints_are_whole_unless_the_user_has_a_plugin_of_their_own(tmp_path):
    arguments = ["--config", str(CONFIG), f"--run_dir={tmp_path / 'run'}"]
    assert type(LDMProbeCLI(arguments, run=False).trainer.strategy.checkpoint_io) is AtomicCheckpointIO
    own = "--trainer.plugins=[lightning.pytorch.plugins.io.AsyncCheckpointIO]"
    assert type(LDMProbeCLI([*arguments, own], run=False).trainer.strategy.checkpoint_io) is AsyncCheckpointIO


def built(tmp_path, *more):
    folder = [] if any("run_dir" in each or "root_dir" in each for each in more) else [f"--run_dir={tmp_path / 'run'}"]
    return LDMProbeCLI(["--config", str(CONFIG), *folder, *more], run=False)


@pytest.mark.parametrize("name", ["TensorBoardLogger", "CSVLogger"])
def test_a_logger_named_alone_writes_into_the_run_directory(tmp_path, name):
    (logger,) = built(tmp_path, f"--trainer.logger={name}").trainer.loggers
    assert logger.save_dir == str(tmp_path / "run")
    path = tmp_path / "more.yaml"
    path.write_text(
        yaml.safe_dump(
            {"trainer": {"logger": [{"class_path": name}, {"class_path": "lightning.pytorch.loggers.CSVLogger"}]}}
        )
    )
    assert {each.save_dir for each in built(tmp_path, f"--config={path}").trainer.loggers} == {str(tmp_path / "run")}


class OwnTensorBoard(TensorBoardLogger):
    """A user's own."""


class Printing(TensorBoardLogger):
    """A user's own, which writes nothing."""

    def __init__(self, mark: str = "-") -> None:
        super().__init__("nowhere")
        self.mark = mark


def test_a_users_own_logger_is_given_no_more_than_it_takes_and_goes_on_as_its_base_does(tmp_path):
    (logger,) = built(tmp_path, f"--trainer.logger={__name__}.OwnTensorBoard").trainer.loggers
    assert (logger.save_dir, logger.version) == (str(tmp_path / "run"), 0)
    (logger,) = built(
        tmp_path, f"--trainer.logger={__name__}.Printing", "--trainer.logger.init_args.mark=+"
    ).trainer.loggers
    assert (logger.save_dir, logger.mark) == ("nowhere", "+")


def test_no_progress_bar_is_shown_where_none_is_wanted_whatever_callbacks_name(tmp_path):
    assert type(built(tmp_path).trainer.progress_bar_callback).__name__ == "TQDMProgressBar"
    quiet = built(tmp_path, "--trainer.enable_progress_bar=false").trainer
    assert quiet.progress_bar_callback is None
    assert len(quiet.callbacks) == len(built(tmp_path).trainer.callbacks) - 1
    alone = "--trainer.callbacks=lightning.pytorch.callbacks.TQDMProgressBar"
    assert built(tmp_path, alone, "--trainer.enable_progress_bar=false").trainer.progress_bar_callback is None


def test_a_default_root_dir_is_where_the_run_goes(tmp_path, capsys):
    mine = str(tmp_path / "mine")
    cli = built(tmp_path, f"--trainer.default_root_dir={mine}", "--run_dir=null")
    assert cli.trainer.default_root_dir == cli.config.run_dir == mine
    error = refuses(
        capsys, ["fit", "--config", str(CONFIG), f"--trainer.default_root_dir={mine}", "--run_dir=runs/other"]
    )
    assert f"run_dir is runs/other and trainer.default_root_dir {mine}" in error


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_network_with_random_weights_is_not_measured(tmp_path, capsys, command):
    error = refuses(capsys, [command, "--config", str(CONFIG), f"--run_dir={tmp_path / 'run'}"])
    assert f"`ldmprobe {command}` without a checkpoint would measure a network with random" in error


def test_a_reader_that_has_gone_ends_a_command_without_a_traceback():
    command = [sys.executable, "-m", "ldmprobe.cli", "init"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 128 + 13
