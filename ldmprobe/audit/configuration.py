"""The configuration of an audited run: what ``ldmprobe fit`` reads, cut short and kept from the network."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from pathlib import Path

import yaml
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from ldmprobe.audit.observation import is_probe
from ldmprobe.configuration.cli import LDMProbeCLI, listed
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.library import class_at
from ldmprobe.tracking.scalars import OF_PROBES
from ldmprobe.types import PlainValues


def read_configuration(fit_arguments: list[str]) -> PlainValues:
    """Return everything that ``ldmprobe fit`` would make of its arguments, as plain values.

    Raises:
        ConfigurationError: there is no probe in it.
    """
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            LDMProbeCLI([*fit_arguments, "--print_config"], run=False)
    except SystemExit as end:
        if end.code:  # an argument was refused, and the user told
            raise
    config = yaml.safe_load(text.getvalue())
    if not any(is_probe(class_at(callback["class_path"])) for callback in listed(config["trainer"]["callbacks"])):
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
        kind = class_at(callback["class_path"])
        monitored = str((callback.get("init_args") or {}).get("monitor"))
        by_a_probe = monitored.startswith(OF_PROBES)  # training is meant to depend on it
        return issubclass(kind, (Checkpoint, ProgressBar)) or by_a_probe or (not probed and is_probe(kind))

    # Validation once within the run, and short: what it does besides the probes is part of training.
    every = steps // 2 * (trainer["accumulate_grad_batches"] or 1)
    interval = trainer["val_check_interval"]
    config["run_dir"] = str(run_dir)
    config["trainer"] |= {
        "callbacks": [callback for callback in listed(trainer["callbacks"]) if not is_left_out(callback)],
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


def _loggers(loggers: object, folder: Path) -> list[PlainValues]:
    """A CSVLogger, and those of the configuration's loggers that can be kept from the network: logging media is part of
    a probe. In a user's own logger's place stands the one that it extends.
    """
    settings: dict[type, PlainValues] = {
        CSVLogger: {"save_dir": str(folder), "name": "csv"},
        WandbLogger: {"project": "audit", "offline": True, "save_dir": str(folder)},
        TensorBoardLogger: {"save_dir": str(folder), "name": "tensorboard"},
    }
    asked = [class_at(each["class_path"]) for each in listed(loggers) if isinstance(each, dict)]
    kept = [kind for kind in settings if kind is CSVLogger or any(issubclass(each, kind) for each in asked)]
    return [{"class_path": f"lightning.pytorch.loggers.{kind.__name__}", "init_args": settings[kind]} for kind in kept]
