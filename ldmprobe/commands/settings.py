"""Settings of what a command line calls by a name: NAME=VALUE, of the types that the class's constructor has."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from inspect import signature
from typing import TypeVar

from ldmprobe.errors import ConfigurationError, closest

Made = TypeVar("Made")


def setting(text: str) -> tuple[str, str]:
    """Return the name and the value in a text such as "eta=1"."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=VALUE, such as eta=1")
    return name, value


def made_with(kind: Callable[..., Made], settings: Sequence[tuple[str, str]], flag: str) -> Made:
    """Make a part with these settings.

    Args:
        kind: the class, or a partial of it.
        flag: the option that has its name, such as "--sampler".

    Raises:
        ConfigurationError: a setting that it does not have, or a value of another type or out of range.
    """
    if not settings:
        return kind()
    from jsonargparse import ArgumentError, ArgumentParser

    made = kind()
    parser, known = ArgumentParser(exit_on_error=False), list(signature(type(made)).parameters)
    for name, _ in settings:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigurationError(
                f"{flag}-settings names {name!r}, which is no setting of {type(made).__name__}; {has}."
                f"{closest(name, known)}"
            )
    parser.add_class_arguments(type(made))
    try:
        read = parser.parse_args([f"--{name}={value}" for name, value in settings])
    except ArgumentError as error:
        first = str(error).splitlines()[0]
        raise ConfigurationError(f"{flag}-settings of {type(made).__name__}: {first}") from error
    return kind(**{name: read[name] for name, _ in settings})
