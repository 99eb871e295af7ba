"""Other libraries: their classes by the names that files have for them, and messages that are not to be logged."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

from ldmprobe.types import Component


def class_named(library: str, name: str) -> Component:
    """Return the class of this name in a library; None where the installed version has none."""
    found = getattr(import_module(library), name, None)
    return found if inspect.isclass(found) else None


@contextmanager
def unlogged(unwanted: Callable[[str], bool], *loggers: str) -> Iterator[None]:
    """Silence the messages of these loggers that are unwanted."""

    def wanted(record: logging.LogRecord) -> bool:
        return not unwanted(record.getMessage())

    named = [logging.getLogger(name) for name in loggers]
    for logger in named:
        logger.addFilter(wanted)
    try:
        yield
    finally:
        for logger in named:
            logger.removeFilter(wanted)
