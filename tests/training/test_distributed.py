"""Several processes (gloo, CPU): the records of one, written once; resumed bit for bit. DDP, FSDP2, two nodes,
finetunes."""

import os
import subprocess
import sys
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import ldmprobe
from first_stage_study import merged
from ldmprobe import (
    Column,
    HeldOut,
    ImageData,
    LatentStatistics,
    RecordStore,
    Sampling,
    load_model,
    probe_denoising,
    probe_sampling,
)
from ldmprobe.cli import main
from ldmprobe.probing.latent_statistics import encode_images
from ldmprobe.training.checkpoint.sharded import is_sharded_checkpoint, load_sharded_checkpoint
from tests.pipelines import saved
from tests.probing.gaussian import assert_same_record, numbers_of
from tests.processes import finish, start, start_ranks
from tests.run_config import component, unet, written
from tests.training.killing import command
from tests.training.test_finetuning import SD

CONFIGS = Path(__file__).parents[2] / "configs"


def fsdp(ranks: int, sharded: bool):
    sizes = {"data_parallel_size": ranks, "tensor_parallel_size": 1}
    strategy = "lightning.pytorch.strategies.ModelParallelStrategy"
    return component(strategy, **sizes, save_distributed_checkpoint=sharded)


SHARDED, WHOLE = fsdp(2, True), fsdp(2, False)
# Neither 19 nor 67 is divisible by 2 or 4, and with these batches the first of 2 ranks has one chunk more than the
# second.
DDIM = {"num_samples": 19, "num_steps": 4, "batch_size": 3}
DENOISING = {"num_draws": 67, "batch_size": 11}
BALANCER = {"num_draws": 35, "batch_size": 11, "num_images": 16, "hysteresis": 0.0}
DATA = {"dataset": "builtin:gaussian", "batch_size": 4, "dataset_kwargs": {"num_images": 200, "channels": 2, "size": 4}}
SHAPES = {"dataset": "builtin:shapes", "batch_size": 4, "dataset_kwargs": {"num_images": 200, "size": 16}}
SHAPES |= {"image_size": 16, "caption_column": "caption", "num_workers": 0}
CHECKPOINTS = component(
    "lightning.pytorch.callbacks.ModelCheckpoint", every_n_train_steps=2, save_top_k=-1, filename="{step}"
)
PROMPTS = ["a red dog", "a blue cat"]
# Of a whole path in float32, whose batches are split otherwise; of the largest number of each curve.
TOLERANCE = 1e-5
# Differences of errors that are nearly alike: shares of these, and standard errors to a thousandth.
_OF_DIFFERENCES = {"condition_use": 1.0, "condition_use_z": 100.0}


def configuration(folder: Path, strategy, steps: int = 4) -> Path:
    """gaussian.yaml made tiny."""
    config = yaml.safe_load((CONFIGS / "gaussian.yaml").read_text())
    config["data"]["init_args"] |= DATA
    config["model"]["init_args"]["network"] = unet(size=4, dropout=0.1)
    config["trainer"] |= {"max_steps": steps, "val_check_interval": 2, "limit_val_batches": 1, "accelerator": "cpu"}
    config["trainer"] |= {"strategy": strategy, "enable_progress_bar": False, "log_every_n_steps": 1}
    config["trainer"]["logger"] = component("lightning.pytorch.loggers.CSVLogger", save_dir=".")
    config["model"]["init_args"]["timesteps"] = {"class_path": "BalancedTimesteps"}
    config["trainer"]["callbacks"] = [
        component("DDIMProbe", every_n_steps=2, **DDIM),
        component("DenoisingProbe", every_n_steps=2, **DENOISING),
        component("TrainingLoss", every_n_steps=3),
        component("TimestepBalancer", every_n_steps=2, **BALANCER),
        CHECKPOINTS,
    ]
    return written(config, folder / "config.yaml")


def finetuning(folder: Path, strategy, **model) -> Path:
    """finetune.yaml made tiny, with ``model``'s settings."""
    config = yaml.safe_load((CONFIGS / "finetune.yaml").read_text())
    config["data"]["init_args"] |= SHAPES
    settings = config["model"]["init_args"]
    settings |= {"prompts": PROMPTS, "ema_decay": 0.5, "validation_timesteps": 1, **model}
    settings["optimizer"]["init_args"]["lr"] = 1e-2
    config["trainer"] |= {"max_steps": 4, "val_check_interval": 2, "limit_val_batches": 1, "accelerator": "cpu"}
    config["trainer"] |= {"strategy": strategy, "precision": "32-true", "enable_progress_bar": False}
    config["trainer"]["callbacks"] = [component("DDIMProbe", every_n_steps=2, **DDIM), CHECKPOINTS]
    return written(config, folder / "config.yaml")


def told(task: str) -> dict:
    """The configuration of a task, as YAMLs in turn make it."""
    parts = [yaml.safe_load((CONFIGS / "tasks" / f"{name}.yaml").read_text()) for name in ("base", task)]
    config = merged(*parts)
    config["data"]["init_args"] |= {"batch_size": 4, "num_workers": 0}
    config["data"]["init_args"]["dataset_kwargs"] |= {"num_images": 200, "size": 16}
    return config


def task(folder: Path, strategy, name: str) -> Path:
    """A task of configs/tasks made tiny."""
    config = told(name)
    network = config["model"]["init_args"]["network"]["init_args"]
    network |= {"sample_size": 16, "block_out_channels": [8, 8, 8], "norm_num_groups": 4, "attention_head_dim": 4}
    config["trainer"] |= {"max_steps": 4, "strategy": strategy, "enable_progress_bar": False}
    probes = [
        component("DDIMProbe", every_n_steps=2, **DDIM),
        component("DenoisingProbe", every_n_steps=2, **DENOISING),
    ]
    config["trainer"]["callbacks"] = [*probes, CHECKPOINTS]
    return written(config, folder / "config.yaml")


def ended(output: Path, processes: list[BaseProcess]) -> None:
    """All ranks have ended well, and none waits for another for ever."""
    assert set(finish(*processes, timeout=400)) == {0}, output.read_text()[-4000:]


def fit(folder: Path, devices: int, strategy="ddp", configured=configuration, **options) -> Path:
    """A run in ``folder / "run"``, whose processes Lightning launches where they are four, of one node."""
    folder.mkdir()
    options |= {"config": configured(folder, strategy), "run_dir": folder / "run", "trainer.devices": devices}
    argv, output = ["fit", *(f"--{name}={value}" for name, value in options.items())], folder / "output.txt"
    if devices == 4:
        ended(output, [start(subprocess.call, [sys.executable, "-m", "ldmprobe.cli", *argv], output=output)])
    else:
        ended(output, start_ranks(devices, command, argv, output=output))
    return folder / "run"


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step={step}.ckpt"


def assert_records_of_one_process(run: Path, data: ImageData, denoising: bool = True) -> None:
    """Those of ``run`` are the ones that this process makes of its checkpoints and the same data, to rounding, relative
    to the largest number of each curve."""
    data.setup()
    reference = LatentStatistics.load(run / "reference.safetensors")
    store, largest = RecordStore(run), 0.0
    for step in (2, 4):
        model = load_model(str(checkpoint(run, step)), "cpu")
        latents = encode_images(model.codec, (batch["image"] for batch in data.reference_batches(4096)))
        assert LatentStatistics.fit(latents, reference.codec).fingerprint == reference.fingerprint
        held_out, short = (
            HeldOut.encode(model.codec, model.conditioning, data.reference_batches(number, held_out=True))
            for number in (512, 128)
        )
        expected = [probe_sampling(model, reference, Sampling(**DDIM), held_out=short, step=step)]
        if denoising:
            previous = next((record for record in store.read("denoising") if record.step == step - 2), None)
            expected += [probe_denoising(model, held_out, reference, step=step, previous=previous, **DENOISING)]
        for one in expected:
            found = next(record for record in store.read(one.probe) if record.step == step)
            trained = {name: found.provenance[name] for name in ("learning_rate",) if name in found.provenance}
            assert all(rate > 0 for rate in trained.values())
            assert (found.fingerprints, found.provenance) == (one.fingerprints, one.provenance | trained)
            assert len(found.images) == len(one.images)
            mine, theirs = numbers_of(found), numbers_of(one)
            assert mine.keys() == theirs.keys()
            for name, value in theirs.items():
                np.testing.assert_array_equal(np.isnan(mine[name]), np.isnan(value), err_msg=name)
                scale = _OF_DIFFERENCES.get(name.partition("/")[0], np.nanmax(np.abs(value), initial=0))
                deviation = np.nanmax(np.abs(mine[name] - value), initial=0) / max(scale, 1e-30)
                assert deviation < 1e-3, (name, deviation, value, mine[name])
                largest = max(largest, float(deviation))
    print(f"largest relative deviation: {largest:.1e}")
    assert largest < TOLERANCE


def assert_written_once(run: Path) -> None:
    names = sorted(path.name for path in (run / "probes").iterdir())
    due = {"ddim": (0, 2, 4), "denoising": (0, 2, 4), "training": (3, 4), "balance": (0, 2, 4)}
    assert names == sorted(f"{probe}-{step:08d}.parquet" for probe, steps in due.items() for step in steps)
    logs = list(run.rglob("metrics.csv"))
    assert len(logs) == 1
    for column, value in pd.read_csv(logs[0]).set_index("step").items():
        assert column == "epoch" or not value.dropna().index.has_duplicates, column


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Samplers' states included."""
    whole = load_sharded_checkpoint(path) if is_sharded_checkpoint(path) else torch.load(path, weights_only=True)
    parts = {name: value if isinstance(value, dict) else {"": value} for name, value in whole["state_dict"].items()}
    return {name + part: value for name, values in parts.items() for part, value in values.items()}


def assert_resumed_identically(run: Path, again: Path) -> None:
    one, other = (weights(checkpoint(folder, 4)) for folder in (run, again))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    for record in RecordStore(run).read():
        if record.step > 2:
            found = next(r for r in RecordStore(again).read(record.probe) if r.step == record.step)
            if record.probe == "denoising":  # the record before it, of its progress, is in the other directory
                del record.curves["denoising_progress"]
                record.provenance["progress_since_step"] = None
            for timed in (record, found):
                timed.scalars.pop("balance_seconds", None)
            assert_same_record(found, record)


@pytest.mark.parametrize(
    ("devices", "strategy"),
    [
        pytest.param(2, "ddp", id="ddp-2", marks=pytest.mark.reliability),  # in short, a finetune below
        pytest.param(2, SHARDED, id="fsdp-2-sharded-checkpoint"),
        pytest.param(2, WHOLE, id="fsdp-2-whole-checkpoint", marks=pytest.mark.reliability),
        # Plain DDP orders its buckets anew after the first step of a process, and with them its sums of more than two
        # ranks.
        pytest.param(4, "ddp_find_unused_parameters_true", id="ddp-4", marks=pytest.mark.reliability),
        pytest.param(4, fsdp(4, True), id="fsdp-4-sharded-checkpoint", marks=pytest.mark.reliability),
    ],
)  # fmt: skip
def test_several_processes_make_the_records_of_one_and_resume_identically(tmp_path, devices, strategy):
    run = fit(tmp_path / "whole", devices, strategy)
    assert is_sharded_checkpoint(checkpoint(run, 2)) == (isinstance(strategy, dict) and strategy != WHOLE)
    assert_written_once(run)
    assert any("timesteps" in name for name in weights(checkpoint(run, 4)))
    assert_records_of_one_process(run, ImageData(**DATA))
    assert_resumed_identically(run, fit(tmp_path / "again", devices, strategy, ckpt_path=checkpoint(run, 2)))


def on_a_node(config: Path, folder: Path, torchrun: list[str]) -> int | None:
    run_dir = folder / f"node{os.environ['NODE_RANK']}"
    argv = ["fit", f"--config={config}", f"--run_dir={run_dir}", "--trainer.num_nodes=2", "--trainer.devices=1"]
    if not torchrun:
        return command(argv)
    places = {name: os.environ.pop(name) for name in ("NODE_RANK", "MASTER_PORT", "LOCAL_RANK", "WORLD_SIZE")}
    here = [f"--node_rank={places['NODE_RANK']}", f"--master_port={places['MASTER_PORT']}"]
    return subprocess.call([sys.executable, *torchrun, *here, "-m", "ldmprobe.cli", *argv])


TORCHRUN = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]


@pytest.mark.reliability
@pytest.mark.parametrize("torchrun", [[], TORCHRUN])
def test_two_nodes_that_share_no_disk_make_the_records_of_one_process_and_resume_identically_on_one(tmp_path, torchrun):
    config, output = configuration(tmp_path, "ddp"), tmp_path / "output.txt"
    ended(output, start_ranks(2, on_a_node, config, tmp_path, torchrun, output=output, per_node=1))
    run = tmp_path / "node0"
    assert_written_once(run)
    assert not is_sharded_checkpoint(checkpoint(run, 2))
    assert any("timesteps" in name for name in weights(checkpoint(run, 4)))
    assert_records_of_one_process(run, ImageData(**DATA))
    assert_resumed_identically(run, fit(tmp_path / "again", 2, ckpt_path=checkpoint(run, 2)))
    assert [path for path in (tmp_path / "node1").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("family", "strategy", "model", "trained"),
    [
        pytest.param(  # whose first text encoder has a last layer that is not used
            "StableDiffusionXLPipeline",
            "ddp",
            {"lora": {"rank": 2}, "train_text_encoder": True},
            {"network", "text"},
            id="ddp-lora-text-encoder",
        ),
        pytest.param(SD, SHARDED, {"lora": None}, {"network"}, id="fsdp-whole-network", marks=pytest.mark.reliability),
        pytest.param(SD, WHOLE, {"lora": None}, {"network"}, id="fsdp-whole-network-and-checkpoint", marks=pytest.mark.reliability),
    ],
)  # fmt: skip
def test_a_finetune_on_two_processes_is_rebuilt_and_resumes_identically(tmp_path, family, strategy, model, trained):
    model["pretrained"] = str(saved(family))
    run = fit(tmp_path / "whole", 2, strategy, partial(finetuning, **model))
    assert_records_of_one_process(run, ImageData(**SHAPES), denoising=False)
    again = fit(tmp_path / "again", 2, strategy, partial(finetuning, **model), ckpt_path=checkpoint(run, 2))
    assert_resumed_identically(run, again)
    path = checkpoint(again, 4)
    base, loaded = (
        {"network": each.network.state_dict(), "text": each.conditioning.encode(PROMPTS)}
        for each in (load_model(model["pretrained"]), load_model(path))
    )
    assert {
        part for part in base if any(not torch.equal(loaded[part][name], value) for name, value in base[part].items())
    } == trained
    arguments = ["--out", str(tmp_path / "samples.png"), "--num-samples=2", "--num-steps=2"]
    assert main(["sample", str(path), *arguments]) == 0


@pytest.mark.reliability
@pytest.mark.parametrize("name", ["semantic_map", "inpainting", "superresolution", "sketch", "style", "layout"])
def test_each_condition_is_the_same_on_two_processes_resumes_identically_and_is_audited(tmp_path, name):
    run = fit(tmp_path / "whole", 2, "ddp", partial(task, name=name))
    settings = told(name)["data"]["init_args"]
    columns = [made(column) for column in settings.pop("columns", [])]
    assert_records_of_one_process(run, ImageData(**settings, columns=columns))
    assert_resumed_identically(
        run, fit(tmp_path / "again", 2, "ddp", partial(task, name=name), ckpt_path=checkpoint(run, 2))
    )
    config = task(tmp_path, "auto", name)
    assert main(["audit", "--config", str(config), "--steps", "3"]) == 0


def made(column: dict) -> Column:
    return getattr(ldmprobe, column["class_path"].removeprefix("ldmprobe."))(**column.get("init_args", {}))
