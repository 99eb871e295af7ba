"""Differences between the configurations of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import yaml

from ldmprobe.io.difference import flat

_SEEDS = ("seed", "seed_everything")
# Settings that change nothing of what is learned: how a run was started, how fast its data come, what is shown of it.
_OF_NO_EFFECT = (
    "ckpt_path",
    "config",
    "data.init_args.num_workers",
    "trainer.default_root_dir",
    "trainer.enable_",  # checkpointing, model summary, progress bar
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.num_sanity_val_steps",
    "trainer.profiler",
)
_PLACES = ("dir", "path", "name")  # ends of the names of settings that may be a run's own folder
_PROBES = (
    "ClassifierProbe DDIMProbe DenoisingProbe Forgetting GradientProbe LikelihoodProbe LoRAStrength "
    "MemorizationProbe PrecisionProbe ReconstructionProbe SampleQuality SamplingProbe TrainingClock TrainingLoss "
    "TrainingObjective"
)
_OF_LIGHTNING = "DeviceStatsMonitor LearningRateMonitor ModelCheckpoint ModelSummary RichModelSummary"
ONLOOKERS = {
    *_PROBES.split(),
    *_OF_LIGHTNING.split(),
    "LoggerGuard",
    "ReportWriter",
    "RichProgressBar",
    "TQDMProgressBar",
}
"""Callbacks that only look on; all others may take part in training."""
_MOST = 10_000  # settings; a stranger's file may hold references that unfold without end


def configuration_differences(directories: Sequence[Path]) -> dict[str, list[str]]:
    """Return, by dotted key, the value in each run's ``config.yaml``: "not set", or "unknown" of a run that has none.
    ``run_dir`` is left out, and so is a difference that is only its name, as that of a place within it.
    """
    settings = [_settings(directory) for directory in directories]
    keys = dict.fromkeys(key for each in settings for key in each if key != "run_dir")
    values = {key: [each.get(key, "not set") if each else "unknown" for each in settings] for key in keys}
    return {key: each for key, each in values.items() if len({*each} - {"unknown"}) > 1}


def only_seeds_differ(one: Path, other: Path) -> bool:
    """Return whether two runs are of one configuration, and differ at most in their seeds and in settings that have no
    effect on what is learned; False where that is not known.
    """
    mine, theirs = (_settings(directory, onlookers=False) for directory in (one, other))
    if not mine or not theirs:
        return False
    differing = [key for key in mine | theirs if mine.get(key) != theirs.get(key)]
    return all(
        key == "run_dir" or key.startswith(_OF_NO_EFFECT) or key.rpartition(".")[2] in _SEEDS for key in differing
    )


def _settings(directory: Path, onlookers: bool = True) -> dict[str, str]:
    try:
        content = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8")[:1_000_000])
        found = dict(islice(flat(content if onlookers else _without_onlookers(content)), _MOST))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    run_dir = found.get("run_dir") or "run_dir"
    return {key: value if key == "run_dir" else _placed(key, value, run_dir) for key, value in found.items()}


def _placed(key: str, value: str, run_dir: str) -> str:
    """Return a setting with ``run_dir`` in place of a run's own folder; elsewhere its name means something else, as a
    dataset's does, or a number.
    """
    own = key.startswith("trainer.") and key.endswith(_PLACES) and value == run_dir
    return f"run_dir{value[len(run_dir) :]}" if own or value.startswith(f"{run_dir}/") else value


def _without_onlookers(content: object) -> object:
    """Return a configuration, its Trainer's callbacks without those that look on."""
    trainer = content.get("trainer") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(trainer, dict):
        return content
    callbacks = trainer.get("callbacks") or []
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    kept = [each for each in listed if not (isinstance(each, dict) and _class_name(each) in ONLOOKERS)]
    others = {name: value for name, value in trainer.items() if name != "callbacks"}
    return {**content, "trainer": {**others, "callbacks": kept} if kept else others}


def _class_name(component: dict[str, object]) -> str:
    return str(component.get("class_path")).rpartition(".")[2]
