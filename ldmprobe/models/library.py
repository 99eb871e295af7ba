"""Classes of diffusers and transformers by the names that files have for them."""

from __future__ import annotations

import inspect
from importlib import import_module

from ldmprobe.types import Component


def class_named(library: str, name: str) -> Component:
    """Return the class of this name in a library; None where the installed version has none."""
    found = getattr(import_module(library), name, None)
    return found if inspect.isclass(found) else None
