"""Differences between the configurations of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import yaml

from ldmprobe.io.difference import flat

_SEEDS = ("seed", "seed_everything")
# Settings that change nothing of what is learned: where it is told, and how it was started.
_OF_NO_EFFECT = ("trainer.logger", "ckpt_path", "config")
_MOST = 10_000  # settings; a stranger's file may hold references that unfold without end


def configuration_differences(directories: Sequence[Path]) -> dict[str, list[str]]:
    """Return, by dotted key, the value in each run's ``config.yaml``: "not set", or "unknown" of a run that has none.
    ``run_dir`` is left out, and so is a difference that is only its name within another setting.
    """
    settings = [_settings(directory) for directory in directories]
    keys = dict.fromkeys(key for each in settings for key in each if key != "run_dir")
    values = {key: [each.get(key, "not set") if each else "unknown" for each in settings] for key in keys}
    return {key: each for key, each in values.items() if len({*each} - {"unknown"}) > 1}


def only_seeds_differ(one: Path, other: Path) -> bool:
    """Return whether two runs are of one configuration and at most their seeds differ; False where that is not
    known.
    """
    if not _settings(one) or not _settings(other):
        return False
    differing = [key for key in configuration_differences([one, other]) if not key.startswith(_OF_NO_EFFECT)]
    return all(key.rpartition(".")[2] in _SEEDS for key in differing)


def _settings(directory: Path) -> dict[str, str]:
    try:
        text = (directory / "config.yaml").read_text(encoding="utf-8")[:1_000_000]
        found = dict(islice(flat(yaml.safe_load(text)), _MOST))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    run_dir = found.get("run_dir") or "run_dir"
    return {key: value if key == "run_dir" else value.replace(run_dir, "run_dir") for key, value in found.items()}
