"""Checks of a Trainer's configuration, before anything is built, that Lightning makes only in training, without saying
what to write instead, or not at all.
"""

from __future__ import annotations

from pathlib import Path

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.training.autoencoding import Autoencoding
from ldmprobe.training.checkpoint.newest import damage
from ldmprobe.training.checkpoint.resume import say
from ldmprobe.training.finetuning import FinetunedDiffusion
from ldmprobe.training.latent_diffusion import LatentDiffusion

RUN_DIR = "runs/run"
"""Where a run goes that names no place."""


def chosen_run_dir(run_dir: str | None, default_root_dir: str | Path | None) -> str:
    """Return where a run goes.

    Raises:
        ConfigurationError: two places are named.
    """
    named = [str(place) for place in (run_dir, default_root_dir) if place is not None]
    if len({Path(place).absolute() for place in named}) > 1:
        raise ConfigurationError(
            f"run_dir is {run_dir} and trainer.default_root_dir {default_root_dir}; everything of a run goes to one "
            "place. Write `run_dir` alone (`--trainer.default_root_dir null` takes the other back)."
        )
    return named[0] if named else RUN_DIR


def check_not_random(model: L.LightningModule, subcommand: str | None, run_dir: str) -> None:
    """Look at a model that is to be measured as it has been built.

    Raises:
        ConfigurationError: it is one that is trained from scratch, so that its weights are random.
    """
    if isinstance(model, (LatentDiffusion, Autoencoding)) and not isinstance(model, FinetunedDiffusion):
        raise ConfigurationError(
            f"`ldmprobe {subcommand}` without a checkpoint would measure a network with random weights; name one by "
            f"`--ckpt_path FILE`, or the last in {run_dir} by `--ckpt_path last`."
        )
    say(f"{subcommand} without a checkpoint: what is measured is {type(model).__name__} as it has been built.")


def check_trainers_numbers(settings: Namespace) -> None:
    """Raise ConfigurationError where a number is out of range that Lightning looks at in training only, or never."""
    interval = settings.val_check_interval
    for at_least, numbers in (
        (1, {"accumulate_grad_batches": settings.accumulate_grad_batches}),
        (0, {name: settings[name] for name in ("gradient_clip_val", "log_every_n_steps", "min_steps", "min_epochs")}),
        (-1, {"num_sanity_val_steps": settings.num_sanity_val_steps}),
        (0.001, {"val_check_interval": interval if isinstance(interval, (int, float)) else None}),
    ):
        check_numbers("The Trainer", at_least, **numbers)


def check_devices(accelerator: object, devices: object) -> None:
    """Raise ConfigurationError where GPUs are asked for that are not there; the Trainer's own error does not say what
    to write instead.
    """
    present = [kind for kind in (CUDAAccelerator, MPSAccelerator) if kind.is_available()]
    gpus = present[0].auto_device_count() if present else 0
    asked = accelerator in ("gpu", "cuda", "mps")
    if asked and not gpus:
        raise ConfigurationError(
            f"There is no GPU here for `--trainer.accelerator {accelerator}`; write `--trainer.accelerator cpu "
            "--trainer.devices 1`."
        )
    if (asked or accelerator == "auto") and str(devices).isdecimal() and 0 < gpus < int(str(devices)):
        raise ConfigurationError(
            f"There are fewer GPUs here than `--trainer.devices {devices}`; write `--trainer.devices {gpus}`."
        )


def check_checkpoint(path: str | None) -> None:
    """Raise ConfigurationError where a checkpoint is named that is not there, or torn."""
    if path in (None, "last", "best", "hpc", "registry") or "://" in str(path) or str(path).startswith("registry:"):
        return
    if not Path(str(path)).exists():
        raise ConfigurationError(f"There is no checkpoint {path}; give an existing file, or `--ckpt_path last`.")
    if fault := damage(Path(str(path))):
        raise ConfigurationError(f"{path} is torn ({fault}); give another checkpoint, or `--ckpt_path last`.")
