"""A logger that fails does not end a run: it is told once, counted, and gone on without. Records are on disk before any
logger sees them, so nothing of a probe is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

from lightning.pytorch.loggers import Logger

_log = logging.getLogger(__name__)
_METHODS = ("log_metrics", "log_hyperparams", "log_graph", "save", "after_save_checkpoint", "finalize")
_failures: WeakKeyDictionary[Logger, int] = WeakKeyDictionary()


@contextmanager
def going_on(logger: Logger) -> Iterator[None]:
    """Whatever ``logger`` raises in here goes no further. The first time it is logged with its traceback, then only
    counted.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 (whatever a logger raises)
        _failures[logger] = failures(logger) + 1
        if _failures[logger] == 1:
            _log.error(
                "%s failed (%s: %s). Training goes on; later failures of this logger are only counted.",
                type(logger).__name__,
                type(error).__name__,
                error,
                exc_info=True,
            )


def failures(logger: Logger) -> int:
    """Return how often ``logger`` has failed."""
    return _failures.get(logger, 0)


def guard(logger: Logger) -> None:
    """Let nothing out of the methods of ``logger`` that Lightning calls. Its class stays what it is, since Lightning
    and others ask for it. Starting the logger is not guarded: one that cannot start should say so before training.
    """
    for name in _METHODS:
        if callable(method := getattr(type(logger), name, None)):
            setattr(logger, name, partial(_call, method, logger))


def _call(method: Callable[..., object], logger: Logger, *args: object, **kwargs: object) -> object:
    with going_on(logger):
        return method(logger, *args, **kwargs)
    return None
