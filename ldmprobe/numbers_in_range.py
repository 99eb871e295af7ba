"""Numbers that a user gives, checked where they come in."""

from __future__ import annotations

import math

from ldmprobe.errors import ConfigurationError


def check_numbers(owner: str, at_least: float, at_most: float = math.inf, **numbers: float | None) -> None:
    """Raise ConfigurationError, naming the first that is NaN, infinite or out of range; None is taken as not given.

    Args:
        owner: whose arguments they are, for the message.
    """
    for name, value in numbers.items():
        if value is None or (at_least <= value <= at_most and math.isfinite(value)):
            continue
        bound = f" and at most {at_most:,}" if math.isfinite(at_most) else ""
        raise ConfigurationError(f"{owner} got {name} {value}; expected at least {at_least}{bound}.")
