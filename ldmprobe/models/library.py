"""Classes by the names that files have for them, of other libraries and the user's, and messages not to be logged."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pydoc import locate

from ldmprobe.errors import ConfigurationError
from ldmprobe.types import Component, Kind, kinds_of


def class_named(library: str, name: str) -> Component:
    """Return the class of this name in a library; None where the installed version has none."""
    found = getattr(import_module(library), name, None)
    return found if inspect.isclass(found) else None


def class_at(path: str) -> type:
    """Return the class at a dotted path, as a configuration gives it; ``object`` where there is none."""
    found = locate(path)
    return found if isinstance(found, type) else object


def own_class_named(base: type[Kind], name: str, what: str) -> type[Kind]:
    """Return the subclass of this name.

    Raises:
        ConfigurationError: there is none; it is taken for one of the user's own. ``what`` says whose class it is.
    """
    found = next((kind for kind in kinds_of(base) if kind.__name__ == name), None)
    if found is None:
        raise ConfigurationError(
            f"The checkpoint has {what} {name}, a class of your own; read it from Python, where that class has been "
            "imported."
        )
    return found


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
