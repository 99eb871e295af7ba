"""``--ckpt_path last``: what a run goes on from, and that its curves go on too."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_write, remove_partials
from ldmprobe.io.plain_text import plain
from ldmprobe.io.run_directory import set_aside_measured
from ldmprobe.lightning_private import set_wandb_id
from ldmprobe.models.library import class_at
from ldmprobe.training.checkpoint.newest import newest_intact


def saving_here(trainer: L.Trainer) -> list[tuple[ModelCheckpoint, Path]]:
    """Return the ModelCheckpoints of a Trainer that save on this machine, each with its folder."""
    saving = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint))
    return [(each, Path(each.dirpath)) for each in saving if each.dirpath and "://" not in str(each.dirpath)]


def last_checkpoint(trainer: L.Trainer, run_dir: str, may_start: bool) -> str | None:
    """The run's newest intact checkpoint; None where it has none yet and ``may_start``, so that one command line serves
    to start a run and to go on with it. Torn ones that stand in the way are told of and renamed to ``….torn``; where
    there is none, what was measured before is set aside.

    Raises:
        ConfigurationError: no checkpoint is intact, or all are gone.
    """
    folders = [Path(run_dir), *(folder for _, folder in saving_here(trainer))]
    saved, torn = newest_intact(folders)
    faults = ", ".join(f"{path} ({fault})" for path, fault in torn.items())
    if saved is None and torn:
        raise ConfigurationError(
            f"No checkpoint of the run in {run_dir} is intact: {faults}. Restore one from elsewhere, or start anew in "
            "another `--run_dir`."
        )
    if saved is None and (not may_start or (Path(run_dir) / "report.html").exists()):
        raise ConfigurationError(
            f"There is no checkpoint in {run_dir}. Put one back, or start anew in another `--run_dir` without "
            "`--ckpt_path`."
        )
    if trainer.is_global_zero:
        for folder in folders[1:]:
            remove_partials(folder)
        if saved is None and set_aside_measured(run_dir):
            say(
                f"the run in {run_dir} was stopped before its first checkpoint; it starts anew, and what it had "
                "measured is set aside in `superseded`."
            )
        if saved is not None and torn:
            say(f"torn: {faults}; going on from {saved.path}, which is of step {saved.global_step}.")
        for path in torn if saved is not None else ():
            path.rename(path.with_name(f"{path.name}.torn"))
    return None if saved is None else str(saved.path)


def continue_curves(logger: Namespace) -> None:
    """Make a logger's configuration one that a resumed run goes on with, where Lightning's begins anew: a CSVLogger
    that keeps its file, a TensorBoardLogger that keeps its folder.
    """
    kind = class_at(logger.class_path)
    if kind is CSVLogger:
        logger.class_path = "ldmprobe.ResumableCSVLogger"
    settings = logger.get("init_args") or Namespace()
    numbered = issubclass(kind, CSVLogger | TensorBoardLogger)
    if numbered and "version" in settings and settings.version is None:
        settings.version = 0


def keep_wandb_id(trainer: L.Trainer, run_dir: str, resuming: bool) -> None:
    """Have W&B take a resumed run for the run it resumes: by its id, kept in ``run_dir/wandb_id``, unless the user
    gives one.
    """
    without = [each for each in trainer.loggers if isinstance(each, WandbLogger) and each.version is None]
    if not without or "WANDB_RUN_ID" in os.environ:
        return
    path = Path(run_dir) / "wandb_id"
    if not resuming or not path.exists():
        with atomic_write(path) as file:
            file.write(secrets.token_hex(4).encode())
    for logger in without:
        set_wandb_id(logger, path.read_text())


def say(message: str) -> None:
    """Tell the user on standard error, as what ldmprobe says."""
    print(f"ldmprobe: {plain(message)}", file=sys.stderr)
