"""A study's plan, from a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ldmprobe.errors import ConfigurationError


def read_plan(path: Path, keys: Mapping[str, type], perhaps: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Return what a YAML file holds: all of ``keys`` and perhaps others, each of its type and not empty.

    Raises:
        ConfigurationError: what is no study, saying what is expected.
    """
    perhaps = perhaps or {}
    try:
        plan = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"No study can be read from {path}: {error}.") from error
    if not isinstance(plan, dict) or plan.keys() - perhaps.keys() != keys.keys():
        more = f", perhaps {', '.join(perhaps)}" if perhaps else ""
        raise ConfigurationError(f"{path} is no study; expected the keys {', '.join(keys)}{more}, and no others.")
    for key, kind in {**keys, **perhaps}.items():
        if key in plan and (not isinstance(plan[key], kind) or not plan[key]):
            raise ConfigurationError(f"{path} has {key} {plan[key]!r}; expected a {kind.__name__} that is not empty.")
    return plan
