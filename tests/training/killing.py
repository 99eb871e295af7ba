"""Runs that are stopped, at a moment of the test's choosing: real processes, real signals; and what is left of them, compared.

Children are forked from a server that has imported everything once: a start costs a tenth of a second instead of ten.
"""

from __future__ import annotations

import csv
import math
import multiprocessing
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
import yaml

from ldmprobe.io.store import RecordStore
from tests.helpers import tiny_unet_settings

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "tests.training.killing",
        "ldmprobe.configuration.cli",
        "diffusers.models.unets.unet_2d",
        "datasets",
        "torch._dynamo",
    ]
)


def write_config(folder: Path, max_steps: int = 12, logger: str = "csv", num_workers: int = 0) -> Path:
    """Everything that could go wrong: two batches to a step, dropout, a moving average, a learning-rate schedule, and probes,
    validation and checkpoints that fall on different steps."""
    loggers = {
        "csv": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "."}},
        "wandb": {
            "class_path": "lightning.pytorch.loggers.WandbLogger",
            "init_args": {"project": "test", "offline": True},
        },
    }
    network = tiny_unet_settings(size=4, dropout=0.1)
    ddim = {"every_n_steps": 2, "num_samples": 8, "num_steps": 2, "num_reference": 64}
    denoising = {"every_n_steps": 3, "num_images": 16, "num_draws": 32, "num_reference": 64}
    config = {
        "data": {
            "class_path": "ldmprobe.ImageData",
            "init_args": {
                "dataset": "builtin:gaussian",
                "dataset_kwargs": {"num_images": 100, "channels": 2, "size": 4},
                "batch_size": 8,
                "num_workers": num_workers,
            },
        },
        "model": {
            "class_path": "ldmprobe.LatentDiffusion",
            "init_args": {
                "network": {"class_path": "diffusers.UNet2DModel", "init_args": network},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
                "lr_scheduler": {
                    "class_path": "torch.optim.lr_scheduler.OneCycleLR",
                    "init_args": {"max_lr": 1e-3, "total_steps": max_steps + 1},
                },
                "ema_decay": 0.99,
                "validation_timesteps": 2,
            },
        },
        "trainer": {
            "max_steps": max_steps,
            "accumulate_grad_batches": 2,
            "accelerator": "cpu",
            "val_check_interval": 5,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": loggers[logger],
            "callbacks": [
                {"class_path": "ldmprobe.callbacks.DDIMProbe", "init_args": ddim},
                {"class_path": "ldmprobe.callbacks.DenoisingProbe", "init_args": denoising},
                {"class_path": "ldmprobe.callbacks.TrainingLoss", "init_args": {"every_n_steps": 4}},
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"every_n_train_steps": 3, "save_last": True},
                },
            ],
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def arguments(config: Path, run_dir: Path, *more: str) -> list[str]:
    return ["fit", "--config", str(config), f"--run_dir={run_dir}", "--ckpt_path=last", *more]


def start(argv: list[str], output: Path, prepare: Callable[..., None] | None = None, *prepare_args: Any) -> BaseProcess:
    """``ldmprobe`` with ``argv`` in a process of its own, which calls ``prepare(*prepare_args)`` first."""
    process = _server.Process(target=_child, args=(argv, str(output), prepare, prepare_args))
    process.start()
    return process


def _child(argv: list[str], output: str, prepare: Callable[..., None] | None, prepare_args: tuple[Any, ...]) -> None:
    # Of another test in this process; a run that is started by hand has a service of its own, which dies with it.
    os.environ.pop("WANDB_SERVICE", None)
    torch.set_num_threads(1)
    stream = open(output, "a", buffering=1)  # noqa: SIM115 (the process's own output, as long as it lives)
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream
    sys.argv = ["ldmprobe", *argv]
    from ldmprobe.cli import main

    if prepare is not None:
        prepare(*prepare_args)
    sys.exit(main(argv))


def run(argv: list[str], output: Path, prepare: Callable[..., None] | None = None, *prepare_args: Any) -> int:
    """The exit code, as of :func:`start`; of a process ended by signal n, −n."""
    process = start(argv, output, prepare, *prepare_args)
    process.join(300)
    assert process.exitcode is not None, output.read_text()
    return process.exitcode


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
    """What differs between two run directories: in the last checkpoint (weights, moving average, optimiser, schedule, callbacks),
    in the probes' records, in the rows of metrics.csv and how often each is there."""
    states = []
    for run_dir in (one, other):
        checkpoint = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
        callbacks = {key: state for key, state in checkpoint["callbacks"].items() if "ModelCheckpoint" not in key}
        same = {key: value for key, value in checkpoint.items() if key not in ("loops", "ldmprobe.ExactResume")}
        states.append({**same, "callbacks": callbacks})
    found = [f"checkpoint {name}" for name in _unequal("", *states)]
    mine, theirs = (
        {(record.probe, record.step): record.to_table().to_pandas() for record in RecordStore(run).read()}
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
