"""``ldmprobe fit | validate | test``: a LightningCLI with one addition, ``run_dir``, where everything of a run goes."""

from __future__ import annotations

import os
import re
import signal
import sys
import warnings
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import ldmprobe.callbacks
from ldmprobe.callbacks.exact_resume import ExactResume
from ldmprobe.callbacks.logger_guard import LoggerGuard
from ldmprobe.configuration.annotations import allow_tuples_of_any_length
from ldmprobe.configuration.checks import (
    RUN_DIR,
    check_checkpoint,
    check_devices,
    check_not_random,
    check_trainers_numbers,
    chosen_run_dir,
)
from ldmprobe.configuration.errors import configuration_errors
from ldmprobe.configuration.foreign_code import check_classes, imports_in_the_open
from ldmprobe.configuration.saved import SaveConfig, plain_settings
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.plain_text import plain
from ldmprobe.io.run_directory import check_own, check_own_checkpoint, lock, reserve, unlock
from ldmprobe.io.store import RecordStore
from ldmprobe.probing.denoising_record import PROBE
from ldmprobe.probing.judge import judge
from ldmprobe.tracking.run_verdict import judged_records, told_in_full
from ldmprobe.training.checkpoint.resume import continue_curves, keep_wandb_id, last_checkpoint, say
from ldmprobe.training.checkpoint.write import AtomicCheckpointIO

attrgetter(*ldmprobe.__all__)(ldmprobe)  # imports them all: only a class that is imported can go by its bare name

T = TypeVar("T")


class Parser(LightningArgumentParser):
    """Loggers that have to be told a ``save_dir`` are told the run's, where a configuration does not name one;
    diffusers gets the tuples that its classes take; and a class within a class gets null where null is given.
    """

    def add_class_arguments(self, theclass: Any, *args: Any, **kwargs: Any) -> list[str]:
        if isinstance(theclass, type):
            allow_tuples_of_any_length(theclass)
        added = super().add_class_arguments(theclass, *args, **kwargs)
        is_logger = isinstance(theclass, type) and issubclass(theclass, Logger)
        if is_logger and "save_dir" in added and self.get_default("save_dir") is None:
            self.set_defaults(save_dir=".")
        return added

    def parse_args(self, args: list[str] | None = None, namespace: Namespace | None = None, **more: bool) -> Namespace:  # type: ignore[override]
        if namespace is not None and args is not None:  # of a class: jsonargparse has made text of the value
            args = [re.sub("=None$", "=null", each) for each in args]
        return super().parse_args(args, namespace, **more)


class LDMProbeCLI(LightningCLI):
    """A LightningModule and a LightningDataModule by ``class_path``; ``run_dir`` sets ``trainer.default_root_dir``, the
    ``save_dir`` of loggers and the ``dirpath`` of checkpoints, where these are not set themselves; a
    ``trainer.default_root_dir`` is taken for the ``run_dir`` where there is none. Checkpoints are whole or not
    there, one process has the run directory, and ``--ckpt_path last`` goes on exactly (``ExactResume``).

    Args:
        argv: with ``run``, a subcommand and its arguments, carried out; without, the arguments of ``fit``, only built.
    """

    def __init__(self, argv: list[str], run: bool = True) -> None:
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run from within Python")
        self._command = argv[0] if run else None
        super().__init__(
            L.LightningModule,
            L.LightningDataModule,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=argv,
            run=run,
            seed_everything_default=0,
            save_config_callback=SaveConfig if run else None,
            trainer_defaults={
                "max_epochs": -1,
                "check_val_every_n_epoch": None,
                "callbacks": [ExactResume(), LoggerGuard()],
            },
            auto_configure_optimizers=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # a static method there
        """Return the one that is asked for: to build and ask a parser of each of the four takes seconds."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name == self._command}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return super().init_parser(exit_on_error=False, **kwargs)  # what is wrong is told without pages of usage

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help=f"where everything of the run goes (default: trainer.default_root_dir, or {RUN_DIR})",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        with configuration_errors("read"), imports_in_the_open():
            super().parse_arguments(parser, args)
            check_classes(self.config)
        if subcommand := self.config.get("subcommand"):
            check_checkpoint(self.config[subcommand].get("ckpt_path"))

    def _parse_ckpt_path(self) -> None:
        """Do nothing, where Lightning reads a checkpoint's hyperparameters: they may name a class, which would be
        imported unseen.
        """

    def _dump_config(self) -> None:
        """Give what modules that ask for hyperparameters are given; Lightning checks the whole configuration anew."""
        if not hasattr(self, "config_dump"):
            settings = plain_settings(self.parser, self.config, skip_link_targets=False)
            self.config_dump = settings[self.subcommand] if self.subcommand else settings

    @configuration_errors("read")
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand] if self.subcommand else self.config
        if "weights_only" in config and config.weights_only is None:
            config.weights_only = True  # Lightning unpickles what comes from a URL
        check_devices(config.trainer.accelerator, config.trainer.devices)
        check_trainers_numbers(config.trainer)
        config.run_dir = chosen_run_dir(config.run_dir, config.trainer.default_root_dir)
        config.trainer.default_root_dir = None  # so that a saved configuration has one place to change
        self.save_config_kwargs = {"asked": config.clone()}
        if self.subcommand == "fit" and config.trainer.fast_dev_run:
            self._throw_away(config)
        run_dir = config.run_dir
        if self.subcommand in ("fit", None):
            take = lock if self.subcommand == "fit" and _is_first_process() else reserve
            take(run_dir, resuming=config.get("ckpt_path") is not None)
            if config.get("ckpt_path") not in (None, "last", "best", "hpc"):
                check_own_checkpoint(config.ckpt_path, run_dir)
        for logger in listed(config.trainer.logger):
            if not isinstance(logger, Namespace):  # true or false
                continue
            settings = logger.get("init_args") or Namespace()
            if "save_dir" in settings:
                if settings.save_dir in (None, "."):
                    settings.save_dir = run_dir
                else:
                    check_own(settings.save_dir, run_dir, f"{logger.class_path}'s `save_dir`")
            continue_curves(logger)
        for callback in listed(config.trainer.callbacks):
            if callback.class_path.endswith("ModelCheckpoint"):
                if (dirpath := callback.init_args.get("dirpath")) is None:
                    callback.init_args.dirpath = f"{run_dir}/checkpoints"
                else:
                    check_own(dirpath, run_dir, "ModelCheckpoint's `dirpath`")

    def _throw_away(self, config: Namespace) -> None:
        """Have a ``fast_dev_run`` write into a folder that goes when this object does, so that the real run finds an
        empty directory.
        """
        if config.ckpt_path not in (None, "last"):
            raise ConfigurationError(
                "`trainer.fast_dev_run` trains a few batches from the start and keeps nothing; leave out `--ckpt_path`."
            )
        say(f"a fast_dev_run leaves nothing behind: {config.run_dir} is neither read nor written.")
        self._scratch = TemporaryDirectory(prefix="ldmprobe-", ignore_cleanup_errors=True)
        config.run_dir = self._scratch.name
        config.ckpt_path = None
        for callback in listed(config.trainer.callbacks):
            if callback.class_path.endswith("ModelCheckpoint"):  # Lightning's saves a last.ckpt even so
                callback.init_args.save_last = False

    @configuration_errors("built")
    def instantiate_classes(self) -> None:
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        settings = self._get(self.config_init, "trainer")
        if settings.enable_progress_bar is False:  # which Lightning takes for an error where callbacks name a bar
            settings.callbacks = [each for each in listed(settings.callbacks) if not isinstance(each, ProgressBar)]
        trainer = super().instantiate_trainer(default_root_dir=self._get(self.config_init, "run_dir"), **kwargs)
        # Lightning's default, not one of the user's choice.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def before_fit(self) -> None:
        fit = self.config_init["fit"]
        if self.trainer.is_global_zero:
            keep_wandb_id(self.trainer, fit.run_dir, resuming=fit.ckpt_path is not None)
        if fit.ckpt_path == "last":
            fit.ckpt_path = last_checkpoint(self.trainer, fit.run_dir, may_start=True)

    def after_fit(self) -> None:
        """Say what the run has come to, as its last lines; a ``fast_dev_run`` comes to nothing."""
        fit = self.config_init["fit"]
        run_dir = Path(fit.run_dir)
        if fit.trainer.fast_dev_run or not self.trainer.is_global_zero or not RecordStore(run_dir).paths(PROBE):
            return
        try:
            records = judged_records(run_dir)
            said = told_in_full(run_dir, records, judge(records))
        except Exception as error:  # noqa: BLE001 (training is done, and must not end in a traceback)
            said = f"No verdict could be reached on these records ({type(error).__name__}: {error})."
        page = run_dir / "report.html"
        where = f"{page}: open it in a browser" if page.is_file() else f"`ldmprobe report {run_dir}` writes the page"
        print(f"\n{plain(said)}\n\n{where}", flush=True)

    def before_validate(self) -> None:
        settings = self.config_init[self.subcommand]
        if settings.ckpt_path == "last":
            settings.ckpt_path = last_checkpoint(self.trainer, settings.run_dir, may_start=False)
        if settings.ckpt_path is None:
            check_not_random(self.model, self.subcommand, settings.run_dir)

    before_test = before_validate


def listed(setting: T | list[T] | None) -> list[T]:
    """Return the list that callbacks or loggers are, which one of them alone or none may stand for."""
    if isinstance(setting, list):
        return setting
    return [] if setting is None else [setting]


def _is_first_process() -> bool:
    """Return whether this is global rank zero, as the launcher's environment says: there is no Trainer yet."""
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    return rank == 0 and int(os.environ.get("NODE_RANK", "0")) == 0


def run(argv: list[str]) -> None:
    """Carry out one of the Trainer's subcommands.

    Raises:
        SystemExit: 143 (128 + SIGTERM) where the process was told to end, so that a scheduler knows it has not
            finished.
    """
    # Codec and moving average stay in eval mode.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    try:
        LDMProbeCLI(argv)
    except SIGTERMException:
        print("ldmprobe: terminated; `--ckpt_path last` continues.", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        unlock()
