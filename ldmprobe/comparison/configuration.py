"""Where the configurations of several runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import yaml

from ldmprobe.difference import flat

_MOST = 10_000  # settings; a stranger's file may hold references that unfold without end


def configuration_differences(directories: Sequence[Path]) -> dict[str, list[str]]:
    """By dotted key, the value in each run's ``config.yaml``: "not set", or "unknown" of a run that has none. ``run_dir`` is left out."""
    settings = [_settings(directory) for directory in directories]
    keys = dict.fromkeys(key for each in settings for key in each if key != "run_dir")
    values = {key: [each.get(key, "not set") if each else "unknown" for each in settings] for key in keys}
    return {key: each for key, each in values.items() if len({*each} - {"unknown"}) > 1}


def _settings(directory: Path) -> dict[str, str]:
    try:
        text = (directory / "config.yaml").read_text(encoding="utf-8")[:1_000_000]
        return dict(islice(flat(yaml.safe_load(text)), _MOST))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
