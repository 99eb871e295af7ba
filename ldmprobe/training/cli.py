"""``ldmprobe fit | validate | test``: a LightningCLI with one addition, ``run_dir``, where everything of a run goes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import ldmprobe.callbacks
from ldmprobe.data.images import ImageData  # noqa: F401 (short class names in YAML)
from ldmprobe.errors import ConfigurationError
from ldmprobe.tracking.run_directory import claim
from ldmprobe.training.latent_diffusion import LatentDiffusion  # noqa: F401


class SaveConfig(SaveConfigCallback):
    """The whole configuration, as ``config.yaml`` in the run directory and in the loggers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes nothing yet: the run may still be refused."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config)
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(text)
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config.as_dict())


class LDMProbeCLI(LightningCLI):
    """Any LightningModule and LightningDataModule by ``class_path``; ``run_dir`` sets ``trainer.default_root_dir``, the
    ``save_dir`` of loggers and the ``dirpath`` of checkpoints, where these are not set themselves."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str, default="runs/run", help="where everything of the run goes")
        parser.link_arguments("run_dir", "trainer.default_root_dir")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand] if self.subcommand else self.config
        run_dir = config.run_dir
        if self.subcommand in ("fit", None):
            claim(run_dir, resuming=config.get("ckpt_path") is not None)
        _check_checkpoint(config.get("ckpt_path"))
        loggers = config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            settings = getattr(logger, "init_args", None)
            if settings is not None and settings.get("save_dir") in (None, "."):
                settings.save_dir = run_dir
        callbacks = config.trainer.callbacks or []
        for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
            if callback.class_path.endswith("ModelCheckpoint") and callback.init_args.get("dirpath") is None:
                callback.init_args.dirpath = f"{run_dir}/checkpoints"


def _check_checkpoint(path: str | None) -> None:
    if path in (None, "last", "best", "hpc", "registry") or "://" in str(path) or str(path).startswith("registry:"):
        return
    if not Path(str(path)).exists():
        raise ConfigurationError(f"There is no checkpoint {path}; give an existing file, or `--ckpt_path last`.")


def build_cli(argv: list[str], run: bool = True) -> LDMProbeCLI:
    """The command line on ``argv``: with ``run``, a subcommand and its arguments, carried out; without, the arguments of ``fit``,
    only built."""
    assert ldmprobe.callbacks  # imported so that YAML may use their short names
    return LDMProbeCLI(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=argv,
        run=run,
        seed_everything_default=0,
        save_config_callback=SaveConfig if run else None,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"max_epochs": -1, "check_val_every_n_epoch": None},
        auto_configure_optimizers=False,
    )


def run(argv: list[str]) -> None:
    """One subcommand of Trainer, from the command line's arguments.

    Raises:
        ConfigurationError: anything a user can put right, before training.
    """
    # The codec and the moving average stay in eval mode on purpose.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run from within Python")
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    try:
        build_cli(argv)
    except ConfigurationError:
        raise
    except Exception as error:
        # Lightning and jsonargparse wrap what constructors raise; the message for the user is the innermost.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ConfigurationError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise
