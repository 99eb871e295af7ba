"""Optimizers and learning-rate schedules built as configured, and the numbers that they then train with, checked before
training.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import TypeVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.types import PlainValues

T = TypeVar("T")


def configured(
    parameters: list[nn.Parameter] | list[PlainValues],
    make_optimizer: OptimizerCallable,
    make_scheduler: LRSchedulerCallable | None,
) -> OptimizerLRScheduler:
    """Return what ``configure_optimizers`` has to, with a schedule that is stepped every optimizer step.

    Args:
        parameters: all that are trained, or groups of them as dicts.

    Raises:
        ConfigurationError: optimizer or schedule cannot be built as configured, or would train with a number that makes
            no sense, or the schedule waits for a metric.
    """
    optimizer = built("optimizer", lambda: make_optimizer(parameters))
    check_rates("optimizer", optimizer)
    if make_scheduler is None:
        return optimizer
    scheduler = built("lr_scheduler", lambda: make_scheduler(optimizer))
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ConfigurationError(
            "The model's `lr_scheduler` is ReduceLROnPlateau, which waits for a metric; schedules here are stepped "
            "with the optimizer. Write one that needs none, such as OneCycleLR, or end the run by StopRule."
        )
    check_rates("lr_scheduler", optimizer)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def built(argument: str, make: Callable[[], T]) -> T:
    """Return what ``make`` returns.

    Args:
        argument: the model's, for the message.

    Raises:
        ConfigurationError: it takes its own arguments for wrong, such as a negative learning rate.
    """
    try:
        return make()
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"The model's `{argument}` cannot be built as configured: {error}.") from error


def check_rates(argument: str, optimizer: torch.optim.Optimizer) -> None:
    """Raise ConfigurationError if the optimizer would train with a number that is NaN or infinite, or with a negative
    learning rate. Not all of torch's look themselves, and no schedule does.

    Args:
        argument: the model's that has set them, for the message.
    """
    for group in optimizer.param_groups:
        for name, value in group.items():
            number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
            if isinstance(number, (int, float)) and (not isfinite(number) or (name == "lr" and number < 0)):
                wanted = "a finite number >= 0" if name == "lr" else "a finite number"
                raise ConfigurationError(f"The model's `{argument}` sets {name} to {number}; expected {wanted}.")
