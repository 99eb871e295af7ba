"""What only rank zero can know or decide (its disk, its part of a loader), told to all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import lightning as L

from ldmprobe.errors import ConfigurationError

T = TypeVar("T")


def from_rank_zero(trainer: L.Trainer, make: Callable[[], T]) -> T:
    """Return what ``make`` returns on rank zero, where alone it is called, on every rank. All ranks must call this.

    Raises:
        ConfigurationError: whatever ``make`` raises, on every rank, so that none waits for one that has ended.
    """
    made: T | None = None
    error: Exception | None = None
    if trainer.is_global_zero:
        try:
            made = make()
        except Exception as problem:  # noqa: BLE001 (raised below, on every rank)
            error = problem
    if trainer.world_size > 1:
        told = f"{type(error).__name__}: {error}" if error else ""
        made, failed, told = trainer.strategy.broadcast((made, isinstance(error, ConfigurationError), told))
        if error is None and told:
            error = ConfigurationError(told.partition(": ")[2]) if failed else RuntimeError(f"On rank zero: {told}")
    if error is not None:
        raise error
    return made  # type: ignore[return-value]
