"""Processes of their own, forked from a server that has imported everything once: a start costs a tenth of a second
instead of ten."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("tests.training.killing", "tests.training.test_latent_diffusion", "ldmprobe.configuration.cli", "ldmprobe.audit.run"),
        *("diffusers.models.unets.unet_2d", "datasets", "torch._dynamo", "wandb", "sklearn.mixture"),
    ]
)  # fmt: skip


def start(target: Callable[..., int | None], *arguments: object, output: Path, **environment: str) -> BaseProcess:
    """Call ``target(*arguments)`` in a process whose output goes into a file and whose exit code is what the call
    returns."""
    everything = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = SERVER.Process(target=_child, args=(target, arguments, str(output), os.getcwd(), everything))
    process.start()
    return process


def _child(
    target: Callable[..., int | None],
    arguments: tuple[object, ...],
    output: str,
    folder: str,
    environment: dict[str, str],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    # Of another test in this process; a run that is started by hand has a service of its own, which dies with it.
    os.environ.pop("WANDB_SERVICE", None)
    os.chdir(folder)
    os.setsid()  # so that what it starts ends with it
    torch.set_num_threads(1)
    stream = open(output, "a", buffering=1)  # noqa: SIM115 (the process's own output, as long as it lives)
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream
    sys.exit(target(*arguments))


def start_ranks(
    number: int, target: Callable[..., int | None], *arguments: object, output: Path, per_node: int = 0
) -> list[BaseProcess]:
    """Start one process per rank, in the environment that a launcher gives each, all on one node unless ``per_node``
    says otherwise."""
    per_node = per_node or number
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    places = [{"NODE_RANK": str(rank // per_node), "LOCAL_RANK": str(rank % per_node)} for rank in range(number)]
    return [
        start(_rank, rank, target, *arguments, output=output, **group, **place) for rank, place in enumerate(places)
    ]


def _rank(rank: int, target: Callable[..., int | None], *arguments: object) -> int | None:
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    rank_zero_only.rank = rank  # type: ignore[attr-defined] # as Lightning reads it from the environment when it is imported
    return target(*arguments)


def finish(*processes: BaseProcess, timeout: float = 300) -> list[int | None]:
    """Return the exit codes (−n for a process that signal n ended, None for one that never ended), and leave no process
    behind."""
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return codes
