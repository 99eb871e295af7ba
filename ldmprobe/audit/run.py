"""One audited run in a fresh process: the state of training after every batch, and around every hook of a probe."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import yaml
from torch import nn

from ldmprobe.audit.configuration import audited
from ldmprobe.audit.observation import Observation, Recorder, bracket, is_probe, logged_metrics
from ldmprobe.callbacks import ProbeCallback
from ldmprobe.configuration.cli import LDMProbeCLI
from ldmprobe.configuration.errors import meant_for_the_user
from ldmprobe.errors import ConfigurationError
from ldmprobe.lightning_private import callbacks_of
from ldmprobe.types import PlainValues


def every_n_steps(steps: int) -> int:
    """Return how often probes run: twice within the audited steps."""
    return max(1, steps // 2)


def observe(config: PlainValues, folder: Path, steps: int, probed: bool) -> Observation:
    """Train by ``config`` as ``audited`` makes it, and write down the state of training after every batch."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "audited.yaml"
    path.write_text(yaml.safe_dump(audited(config, folder / "run", steps, probed)))
    cli = LDMProbeCLI(["--config", str(path)], run=False)
    seen = Observation()
    callbacks = callbacks_of(cli.trainer)
    averages = {
        f"{type(callback).__name__}.{name}": value
        for callback in callbacks
        if not is_probe(type(callback))
        for name, value in vars(callback).items()
        if isinstance(value, nn.Module)
    }
    for callback in callbacks:
        if is_probe(type(callback)):
            bracket(callback, seen, averages)
        if isinstance(callback, ProbeCallback):
            callback.every_n_steps = min(callback.every_n_steps, every_n_steps(steps))
    callbacks.append(Recorder(seen, averages))
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    seen.metrics = logged_metrics(folder / "run" / "csv")
    return seen


def in_fresh_process(config: PlainValues, steps: int, folder: Path, probed: bool, name: str) -> Observation:
    """Return what a run is observed to do, told in a line while it does.

    Raises:
        ConfigurationError: it was killed, or its configuration cannot be run.
    """
    print(f"  {name:<26}", end="", flush=True)
    start = time.monotonic()
    output = folder / "output.txt"
    folder.mkdir()
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, spawn, initializer=_speak_to, initargs=(output,)) as pool:
            seen = pool.submit(_observe_or_say_why, config, folder, steps, probed).result()
    except BrokenProcessPool as error:
        last = "".join(output.read_text(errors="replace").splitlines(keepends=True)[-20:])
        raise ConfigurationError(
            f"The run {name} was killed, perhaps for want of memory. The last it said:\n{last}"
        ) from error
    runs = ", ".join(f"{probe} {count}×" for probe, count in seen.probe_runs.items())
    print(f"{time.monotonic() - start:5.0f} s   {runs}".rstrip(), flush=True)
    return seen


def _speak_to(output: Path) -> None:
    """Send all that the run says into a file."""
    os.environ["WANDB_MODE"] = "offline"
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def _observe_or_say_why(config: PlainValues, folder: Path, steps: int, probed: bool) -> Observation:
    try:
        return observe(config, folder, steps, probed)
    except BaseException as error:
        if (told := meant_for_the_user(error)) is not None:
            raise ConfigurationError(str(told)) from None
        raise
