"""``config.yaml``: how a run is configured, as it was asked for, and as it is in effect where the run goes on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from ldmprobe.configuration.foreign_code import imported
from ldmprobe.io.atomic import atomic_write
from ldmprobe.io.difference import changes
from ldmprobe.training.checkpoint.resume import say
from ldmprobe.types import PlainValues, StateDict

_KEY = "ldmprobe.configuration"
_OF_THIS_START = ("run_dir", "ckpt_path")  # no part of what is compared
_MOST_TOLD = 40
_HELD_IN_STATE = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)


def plain_settings(parser: LightningArgumentParser, config: Namespace, **kwargs: bool) -> PlainValues:
    """Return a configuration that has been parsed as plain values. It is not checked again, which would take as long as
    to parse it.
    """
    settings: PlainValues = yaml.safe_load(parser.dump(config, skip_unset=False, skip_validation=True, **kwargs))
    return settings


class SaveConfig(SaveConfigCallback):
    """Saves the configuration in the run's directory, in its loggers and in its checkpoints.

    It is saved as it was asked for: without the places that follow from ``run_dir`` and without the checkpoint that was
    gone on from, so that the file starts another run elsewhere. Where a run goes on with another configuration, each
    difference is told with what becomes of it; settings that the checkpoint decides stay in the file as they are in
    effect; and the file before is kept as ``config.1.yaml``, ``config.2.yaml``, ….

    Args:
        config: as Lightning has it: with the places that follow from ``run_dir``.
        asked: the same without them.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, asked: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.settings: PlainValues = plain_settings(parser, asked)
        self.settings.pop("ckpt_path", None)
        self._text: str | None = None  # of `settings`, as checkpoints have it
        self._begun = self._told = ""  # a comment: where the run goes on from; what is told of that

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write nothing yet: the run may still be refused."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and not self._loads_after(trainer):
            self.save_config(trainer, pl_module, "fit")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: StateDict) -> None:
        if self._text is None:
            self._text = yaml.safe_dump(_compared(self.settings), sort_keys=False)
        checkpoint[_KEY] = self._text

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: StateDict) -> None:
        if trainer.state.fn != "fit":
            return
        step, path = checkpoint["global_step"], trainer.ckpt_path
        self._begun = f"# From step {step} on, going on from {path}.\n"
        if (text := checkpoint.get(_KEY)) is not None:
            asked, theirs = self.settings, yaml.safe_load(text)
            self.settings, self._text = _with_state(asked, theirs), None
            if told := list(_told(_compared(asked), _compared(self.settings), theirs)):
                self._told = "\n".join([f"this configuration is not that of {path}, which is of step {step}:", *told])
        if trainer.is_global_zero and self._loads_after(trainer):
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._told:
            say(self._told)
        path = Path(trainer.default_root_dir) / "config.yaml"
        if _read(path) != self.settings:
            before = _keep(path)
            begun = self._begun + (f"# Until then: {before.name}\n" if before is not None else "")
            with atomic_write(path) as file:
                file.write((begun + yaml.safe_dump(self.settings, sort_keys=False)).encode())
        for logger in trainer.loggers:
            logger.log_hyperparams(deepcopy(self.settings))

    @staticmethod
    def _loads_after(trainer: L.Trainer) -> bool:
        """Return whether a checkpoint will be loaded only after ``on_fit_start``, as under strategies that shard."""
        return trainer.ckpt_path is not None and trainer.strategy.restore_checkpoint_after_setup


def _compared(settings: PlainValues) -> PlainValues:
    return {name: value for name, value in settings.items() if name not in _OF_THIS_START}


def _read(path: Path) -> object:
    """The settings in a file; None where there is none that can be read."""
    try:
        settings: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return settings


def _keep(path: Path) -> Path | None:
    """Give a file that is about to be replaced the first free number; return its new path."""
    if not path.exists():
        return None
    kept = next(new for k in count(1) if not (new := path.with_name(f"{path.stem}.{k}{path.suffix}")).exists())
    return path.replace(kept)


# --- what the checkpoint decides -------------------------------------------------------------------------------------


def _in_state(ours: object, theirs: object) -> Iterator[tuple[PlainValues, PlainValues]]:
    """Yield the settings of each optimizer and learning-rate scheduler, whose arguments are kept in its state, and the
    checkpoint's of the same class in the same place; the class is imported, as it was built.
    """
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return
    kind = imported(str(ours.get("class_path")))
    if inspect.isclass(kind) and issubclass(kind, _HELD_IN_STATE):
        if theirs.get("class_path") == ours["class_path"]:
            yield ours, theirs
        return
    for name, value in ours.items():
        yield from _in_state(value, theirs.get(name))


def _with_state(asked: PlainValues, theirs: PlainValues) -> PlainValues:
    """Return the settings asked for, but those of optimizers, schedulers and the random state as they are in the
    checkpoint.
    """
    settings = deepcopy(asked)
    if "seed_everything" in settings and "seed_everything" in theirs:
        settings["seed_everything"] = theirs["seed_everything"]
    for here, there in _in_state(settings, theirs):
        here["init_args"] = deepcopy(there.get("init_args", {}))
    return settings


def _told(asked: PlainValues, in_effect: PlainValues, theirs: PlainValues) -> Iterator[str]:
    """A line for each setting that is not the checkpoint's."""
    effective = {key for key, _, _ in changes(theirs, in_effect)}
    found = list(changes(theirs, asked))
    for key, before, now in found[:_MOST_TOLD]:
        effect = "from here on" if key in effective else "without effect"
        if key.endswith(".num_reference"):
            effect = "without effect on a reference that is there already"
        yield f"  {key}: {before} → {now}, {effect}"
    if len(found) > _MOST_TOLD:
        yield f"  … and {len(found) - _MOST_TOLD} more"
    if any(key not in effective for key, _, _ in found):
        yield (
            "  Optimizer, learning-rate schedule and random state go on as they are in the checkpoint, and config.yaml "
            "says so. For others start a new run (FinetunedDiffusion takes the checkpoint's weights as `pretrained`)."
        )
