"""Runs that are stopped, at a moment of the test's choosing: real processes, real signals; and what is left of them,
compared."""

import csv
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from ldmprobe.io.record_table import to_table
from ldmprobe.io.store import RecordStore
from tests import processes
from tests.run_config import component, stateful_run, written


def write_config(folder: Path, max_steps: int = 12, logger: str = "csv", num_workers: int = 0) -> Path:
    """Everything that could go wrong: a stateful run, with probes, validation and checkpoints that fall on different
    steps."""
    loggers = {
        "csv": component("lightning.pytorch.loggers.CSVLogger", save_dir="."),
        "wandb": component("lightning.pytorch.loggers.WandbLogger", project="test", offline=True),
    }
    callbacks = [
        component("DDIMProbe", every_n_steps=4, num_samples=8, num_steps=2, num_reference=64),
        component("DenoisingProbe", every_n_steps=3, num_images=16, num_draws=32, num_reference=64),
        component("TrainingLoss", every_n_steps=4),
        component("lightning.pytorch.callbacks.ModelCheckpoint", every_n_train_steps=3, save_last=True),
    ]
    quiet = {"num_sanity_val_steps": 0, "enable_progress_bar": False, "enable_model_summary": False}
    often = {"max_steps": max_steps, "val_check_interval": 5, "log_every_n_steps": 1}
    config = stateful_run(
        {}, {"num_workers": num_workers}, logger=loggers[logger], callbacks=callbacks, **quiet, **often
    )
    return written(config, folder / "config.yaml")


def first_stage_config(folder: Path, max_steps: int = 9) -> Path:
    """An autoencoder with everything that has a state: codes that follow averages and are revived, a discriminator, a
    moving average, a learnt log-variance."""
    blocks = {"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1}
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    network = component("diffusers.VQModel", latent_channels=2, num_vq_embeddings=16, **blocks, **kinds)
    discriminator = component("PatchDiscriminator", channels=3, image_size=16, width=8)
    model = {
        "autoencoder": network,
        "quantization": component("MovingAverageQuantization", revive_below=0.9, decay=0.5),
        "adversarial": component("Adversarial", discriminator=discriminator, start=2),
        "ema_decay": 0.9,
        "log_variance": 0.0,
    }
    images = {"dataset": "builtin:shapes", "dataset_kwargs": {"size": 16, "num_images": 100}}
    settings = {"feature_network": "builtin:cifar10", "num_images": 16, "num_reference": 16}
    callbacks = [
        component("ReconstructionProbe", every_n_steps=4, **settings),
        component("lightning.pytorch.callbacks.ModelCheckpoint", every_n_train_steps=3, save_last=True),
    ]
    often = {"max_steps": max_steps, "limit_val_batches": 0, "log_every_n_steps": 1, "callbacks": callbacks}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    logger = component("lightning.pytorch.loggers.CSVLogger", save_dir=".")
    config = {
        "model": component("Autoencoding", **model),
        "data": component("ImageData", **images, batch_size=8, check_rows=4),
        "trainer": {**often, **quiet, "logger": logger},
    }
    return written(config, folder / "config.yaml")


def arguments(config: Path, run_dir: Path, *more: str) -> list[str]:
    return ["fit", "--config", str(config), f"--run_dir={run_dir}", "--ckpt_path=last", *more]


def start(argv: list[str], output: Path, prepare: Callable[..., None] | None = None, *prepare_args: Any) -> BaseProcess:
    """``ldmprobe`` with ``argv`` in a process of its own, which calls ``prepare(*prepare_args)`` first."""
    return processes.start(command, argv, prepare, *prepare_args, output=output)


def command(argv: list[str], prepare: Callable[..., None] | None = None, *prepare_args: Any) -> int:
    sys.argv = ["ldmprobe", *argv]
    from ldmprobe.cli import main

    if prepare is not None:
        prepare(*prepare_args)
    return main(argv)


def run(argv: list[str], output: Path, prepare: Callable[..., None] | None = None, *prepare_args: Any) -> int:
    """The exit code, as of :func:`start`; of a process ended by signal n, −n."""
    (code,) = processes.finish(start(argv, output, prepare, *prepare_args))
    assert code is not None, output.read_text()
    return code


# --- when ------------------------------------------------------------------------------------------------------------


def signal_at_call(name: str, number: int, signum: int = signal.SIGKILL) -> None:
    """Send this process a signal as it enters the ``number``-th call of ``module:Class.method``, counted from 1."""
    module, _, path = name.partition(":")
    *owners, attribute = path.split(".")
    owner: Any = __import__(module, fromlist=["_"])
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, attribute)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signum)
        return original(*args, **kwargs)

    setattr(owner, attribute, counted)


def signal_after(seconds: float, signum: int = signal.SIGKILL) -> None:
    """Send this process a signal so long after its Trainer has begun to train."""
    import lightning as L

    original = L.Trainer._run_stage

    def timed(self: L.Trainer) -> Any:
        def end() -> None:
            time.sleep(seconds)
            os.kill(os.getpid(), signum)

        threading.Thread(target=end, daemon=True).start()
        return original(self)

    L.Trainer._run_stage = timed  # type: ignore[method-assign]


# --- what is left ----------------------------------------------------------------------------------------------------


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two run directories: in the last checkpoint (weights, moving average, optimizer, schedule,
    callbacks), in the probes' records, in the rows of metrics.csv and how often each is there."""
    states = []
    for run_dir in (one, other):
        checkpoint = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
        callbacks = {key: state for key, state in checkpoint["callbacks"].items() if "ModelCheckpoint" not in key}
        same = {key: value for key, value in checkpoint.items() if key not in ("loops", "ldmprobe.ExactResume")}
        states.append({**same, "callbacks": callbacks})
    found = [f"checkpoint {name}" for name in _unequal("", *states)]
    mine, theirs = (
        {(record.probe, record.step): to_table(record).to_pandas() for record in RecordStore(run).read()}
        for run in (one, other)
    )
    found += [f"record {key} of one" for key in sorted(mine.keys() ^ theirs.keys())]
    found += [f"record {key}" for key in sorted(mine.keys() & theirs.keys()) if not mine[key].equals(theirs[key])]
    if any(one.rglob("metrics.csv")):
        rows = [Counter(metrics(run)) for run in (one, other)]
        found += [f"row {dict(row)}" for row in (rows[0] - rows[1]) + (rows[1] - rows[0])]
    return found


def metrics(run_dir: Path) -> list[tuple[tuple[str, str], ...]]:
    """Rows of the run's one metrics.csv, as sorted (column, text) pairs."""
    (path,) = run_dir.rglob("metrics.csv")
    with path.open() as file:
        return [tuple(sorted((name, value) for name, value in row.items() if value)) for row in csv.DictReader(file)]


def _unequal(name: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    if isinstance(one, dict) and one.keys() == other.keys():
        return [found for key in one for found in _unequal(f"{name}/{key}", one[key], other[key])]
    if isinstance(one, list) and len(one) == len(other):
        return [
            found for i, pair in enumerate(zip(one, other, strict=True)) for found in _unequal(f"{name}/{i}", *pair)
        ]
    # Not numbers are equal here, such as the drift at the first of a probe's steps.
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return [] if one == other or both_nan else [name]
