"""The audit of a configuration: trained without and with its probes, compared after every batch, and judged.

The first optimizer steps are run without probes and with them, in fresh processes, and the whole state of training
(``ledger.py``) is compared after every batch. Around every hook of every probe the state is compared too, which names
the culprit, and holds where training itself is not repeatable.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import multiprocessing
import os
import pydoc
import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from torch import nn

from ldmprobe.audit.ledger import KINDS, Ledger, differences, in_words
from ldmprobe.audit.observation import Observation, Recorder, bracket, is_probe, logged_metrics
from ldmprobe.callbacks import ProbeCallback
from ldmprobe.configuration.cli import build_cli
from ldmprobe.configuration.errors import meant_for_the_user
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import digest
from ldmprobe.lightning_private import callbacks_of
from ldmprobe.tracking.scalars import SECTION
from ldmprobe.types import Batch, PlainValues

_WIDTH = 100


@dataclass
class Row:
    """How many items of a kind were compared, of how many bytes, and how many differed."""

    names: dict[str, None] = field(default_factory=dict)
    checks: int = 0
    num_bytes: int = 0
    differing: int = 0


@dataclass
class LedgerDiff:
    """Two runs side by side: a row for each kind of thing, and the first difference in words."""

    rows: dict[str, Row]
    first: str | None


def audit(fit_arguments: list[str], steps: int) -> int:
    """Print a table and a verdict; return 0 (undisturbed) or 1.

    Raises:
        ConfigurationError: the configuration names no probe, or cannot be run.
    """
    config = read_configuration(fit_arguments)
    print(
        f"The first {steps} optimizer steps on one device, without and with probes (every {_every_n_steps(steps)} "
        "steps), in a temporary folder:"
    )
    with tempfile.TemporaryDirectory(prefix="ldmprobe-audit-") as folder:
        run = functools.partial(_in_fresh_process, config, steps)
        plain = run(Path(folder) / "plain", False, "without probes")
        probed = run(Path(folder) / "probed", True, "with probes")
        compared, control = compare(plain, probed), None
        if compared.first is not None:
            again = run(Path(folder) / "again", False, "without probes, once more")
            unsteady = _unsteady_metrics(plain, again)
            if unsteady:
                print(f"Left out, as they differ between two runs without probes: {', '.join(sorted(unsteady))}.")
            control, compared = (compare(plain, other, leave_out=unsteady) for other in (again, probed))
    print("\n" + table(compared) + "\n")
    undisturbed, sentences = verdict(probed, compared, control)
    print(sentences)
    return 0 if undisturbed else 1


# --- the configuration
# -------------------------------------------------------------------------------------------------


def read_configuration(fit_arguments: list[str]) -> PlainValues:
    """Everything that ``ldmprobe fit`` would make of its arguments, as plain values.

    Raises:
        ConfigurationError: there is no probe in it.
    """
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            build_cli([*fit_arguments, "--print_config"], run=False)
    except SystemExit as end:
        if end.code:  # an argument was refused, and the user told
            raise
    config = yaml.safe_load(text.getvalue())
    if not any(is_probe(_class_of(callback)) for callback in _listed(config["trainer"]["callbacks"])):
        raise ConfigurationError(
            "The configuration names no probe, so there is nothing to audit; add some under `trainer.callbacks`, such "
            "as `ldmprobe.callbacks.DDIMProbe`, or a second file: `--config configs/probes.yaml`."
        )
    return config


def audited(config: PlainValues, run_dir: Path, steps: int, probed: bool) -> PlainValues:
    """``config`` with or without its probes, for ``steps`` optimizer steps on one device, with everything that is
    written going to ``run_dir``: no checkpoints, W&B offline, other services' loggers left out, and callbacks that end
    training by what a probe finds.
    """
    config = copy.deepcopy(config)
    trainer = config["trainer"]

    def is_left_out(callback: PlainValues) -> bool:
        kind = _class_of(callback)
        monitored = str((callback.get("init_args") or {}).get("monitor"))
        by_a_probe = monitored.startswith(SECTION)  # training is meant to depend on it
        return issubclass(kind, (Checkpoint, ProgressBar)) or by_a_probe or (not probed and is_probe(kind))

    # Validation once within the run, and short: what it does besides the probes is part of training.
    every = steps // 2 * (trainer["accumulate_grad_batches"] or 1)
    interval = trainer["val_check_interval"]
    config["run_dir"] = str(run_dir)
    config["trainer"] |= {
        "callbacks": [callback for callback in _listed(trainer["callbacks"]) if not is_left_out(callback)],
        "default_root_dir": None,
        "logger": _loggers(trainer["logger"], run_dir),
        "max_steps": steps,
        "max_epochs": -1,
        "val_check_interval": min(interval, every) if type(interval) is int else interval,
        "limit_val_batches": 2 if trainer["limit_val_batches"] is None else trainer["limit_val_batches"],
        "log_every_n_steps": 1,
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "fast_dev_run": False,
        "barebones": False,
        "profiler": None,
    }
    return config


def _loggers(loggers: Any, folder: Path) -> list[Batch]:
    """A CSVLogger, and those of the configuration's loggers that can be kept from the network: logging media is part of
    a probe.
    """
    kept = [
        {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder), "name": "csv"}}
    ]
    for logger in _listed(loggers):
        kind = logger["class_path"].rpartition(".")[2] if isinstance(logger, dict) else ""
        if kind == "WandbLogger":
            settings = {"project": "audit", "offline": True, "save_dir": str(folder)}
        elif kind == "TensorBoardLogger":
            settings = {"save_dir": str(folder), "name": "tensorboard"}
        else:
            continue
        kept.append({"class_path": logger["class_path"], "init_args": settings})
    return kept


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _class_of(callback: PlainValues) -> type:
    found = pydoc.locate(callback["class_path"])
    return found if isinstance(found, type) else object


def _every_n_steps(steps: int) -> int:
    return max(1, steps // 2)


# --- one run
# -----------------------------------------------------------------------------------------------------------


def observe(config: PlainValues, folder: Path, steps: int, probed: bool) -> Observation:
    """Train by ``config`` as ``audited`` makes it, and write down the state of training after every batch."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "audited.yaml"
    path.write_text(yaml.safe_dump(audited(config, folder / "run", steps, probed)))
    cli = build_cli(["--config", str(path)], run=False)
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
            callback.every_n_steps = min(callback.every_n_steps, _every_n_steps(steps))
    callbacks.append(Recorder(seen, averages))
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    seen.metrics = logged_metrics(folder / "run" / "csv")
    return seen


def _in_fresh_process(config: PlainValues, steps: int, folder: Path, probed: bool, name: str) -> Observation:
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
    """What the run says goes into a file."""
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


# --- the comparison
# ----------------------------------------------------------------------------------------------------


def compare(one: Observation, other: Observation, leave_out: Iterable[str] = ()) -> LedgerDiff:
    """Two runs, batch by batch, and then what they logged (but for the metrics to ``leave_out``)."""
    rows = {kind: Row() for kind in KINDS}
    first: str | None = None
    pairs = [(place, mine, theirs) for (place, mine), (_, theirs) in zip(one.ledgers, other.ledgers, strict=False)]
    pairs.append(("in the log", _metrics_ledger(one, leave_out), _metrics_ledger(other, leave_out)))
    for place, mine, theirs in pairs:
        for kind, items in mine.items():
            rows[kind].names |= dict.fromkeys(items)
            rows[kind].checks += len(items)
            rows[kind].num_bytes += sum(item.num_bytes for item in items.values())
        for kind, name in differences(mine, theirs):
            rows[kind].differing += 1
            first = first or f"{place}: {in_words(kind, name)}"
    if len(one.ledgers) != len(other.ledgers):
        first = first or f"the number of batches: {len(one.ledgers) - 2} and {len(other.ledgers) - 2}"
    return LedgerDiff({kind: row for kind, row in rows.items() if row.checks}, first)


def _metrics_ledger(seen: Observation, leave_out: Iterable[str]) -> Ledger:
    return {
        "logged metrics": {
            f"{name} at step {step}": digest(values)
            for name, by_step in seen.metrics.items()
            if name not in set(leave_out)
            for step, values in by_step.items()
        }
    }


def _unsteady_metrics(one: Observation, other: Observation) -> set[str]:
    """Metrics, such as times, that differ although the state of training does not."""
    names = one.metrics.keys() | other.metrics.keys()
    different = {name for name in names if one.metrics.get(name) != other.metrics.get(name)}
    return set() if compare(one, other, leave_out=different).first else different


def table(compared: LedgerDiff) -> str:
    """A line for each kind of thing."""
    lines = [f"{'compared after every batch':<40}{'checks':>9}{'bytes':>12}   differ"]
    for kind, row in compared.rows.items():
        which = f" ({', '.join(row.names)})" if kind == "random state" else ""
        lines.append(f"{kind + which:<40}{row.checks:>9,}{_size(row.num_bytes):>12}   {row.differing:>6,}")
    return "\n".join(lines)


def verdict(probed: Observation, compared: LedgerDiff, control: LedgerDiff | None) -> tuple[bool, str]:
    """Whether the probes left training alone, and the sentences that say so."""
    said = []
    runs = sum(probed.probe_runs.values())
    for name, count in probed.probe_runs.items():
        if name in probed.failures:
            said.append(f"{name} failed, so that less was tried than should have been ({probed.failures[name]}).")
        elif count == 0:
            said.append(f"{name} did not run.")
    if probed.disturbances:
        culprits = {disturbance.probe: disturbance for disturbance in reversed(probed.disturbances)}
        said += [f"Disturbed: {disturbance}." for disturbance in reversed(culprits.values())]
    repeatable = control is None or control.first is None
    if control is not None and control.first is not None:
        said.append(
            "Training is not repeatable here, with or without probes: two runs without any differ, first at "
            f"{control.first}. So only the state before and after each run of a probe can be compared. (On a GPU, "
            "`--trainer.deterministic=true` may help.)"
        )
    elif compared.first is not None:
        said.append(f"Training with probes differs from training without, first at {compared.first}.")
    undisturbed = not probed.disturbances and (compared.first is None or not repeatable)
    if undisturbed:
        before_after = (
            f"the {runs} runs of the probes left everything as they found it ({_size(probed.bytes_bracketed)} compared)"
        )
        said.append(
            f"Undisturbed: with probes, training is bit-identical to training without, 0 bytes differ; {before_after}."
            if repeatable
            else f"Undisturbed, as far as can be told: {before_after}."
        )
    return undisturbed, "\n".join(textwrap.fill(sentence, _WIDTH) for sentence in said)


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"
