"""Errors that a user can put right: the one exception for them, the check of a number where it comes in, what a
mistyped name may have meant, and which extra brings a package that is missing.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

EXTRAS = {
    "bitsandbytes": "8bit",
    "efficientnet_lite_pytorch": "perceptual",
    "peft": "lora",
    "pytorch_optimizer": "soap",
    "shtab": "completion",
    "tensorboard": "tensorboard",
    "torch_fidelity": "fid",
    "transformers": "text",
    "wandb_workspaces": "workspace",
}
"""The extras of ldmprobe, by the package that each brings."""


class ConfigurationError(ValueError):
    """Says what was expected, what came, and what to write instead. The command line prints it without a traceback."""

    def __str__(self) -> str:
        """The message alone: a data loader's worker puts its traceback before it."""
        message = super().__str__()
        if message.startswith(f"Caught {type(self).__name__} in DataLoader worker"):
            return message.rpartition(f"{type(self).__name__}: ")[2].strip()
        return message


def check_numbers(owner: str, at_least: float, at_most: float = math.inf, **numbers: float | None) -> None:
    """Raise ConfigurationError, naming the first number that is NaN, infinite or out of range; None counts as not
    given.

    Args:
        owner: whose arguments they are, for the message.
    """
    for name, value in numbers.items():
        if value is None or (at_least <= value <= at_most and math.isfinite(value)):
            continue
        bound = f" and at most {at_most:,}" if math.isfinite(at_most) else ""
        raise ConfigurationError(f"{owner} got {name} {value}; expected at least {at_least}{bound}.")


def check_positive(owner: str, **numbers: float) -> None:
    """Raise ConfigurationError, naming the first number that is NaN, infinite or not above 0.

    Args:
        owner: whose arguments they are, for the message.
    """
    for name, value in numbers.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigurationError(f"{owner} got {name} {value}; expected a finite number above 0.")


def closest(name: str, known: Iterable[str], alike: float = 0.6) -> str:
    """Return " Did you mean …?" with the known name that is most like ``name``; "" if none is.

    Args:
        alike: how much at least, from 0 to 1.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=alike)
    return f" Did you mean {near[0]}?" if near else ""


@contextmanager
def needing(package: str, owner: str, instead: str = "") -> Iterator[None]:
    """Around the import of a package of an extra.

    Args:
        owner: what needs it, for the message.
        instead: what else can be done, as the message's last words.

    Raises:
        ConfigurationError: it is not installed; names the extra.
    """
    try:
        yield
    except ImportError as error:
        extra = f"`pip install 'ldmprobe[{EXTRAS[package]}]'`"
        raise ConfigurationError(f"{owner} needs {package}, which is not installed: {extra}{instead}.") from error
