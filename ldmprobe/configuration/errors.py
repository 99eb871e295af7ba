"""From whatever a configuration makes a library raise to one sentence for its author."""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import groupby
from traceback import walk_tb

from torch.optim import lr_scheduler

import ldmprobe.callbacks
from ldmprobe.errors import EXTRAS, ConfigurationError, closest
from ldmprobe.tracking.wandb import start_error

_INSTALL = {"wandb": "`pip install wandb`, or log elsewhere, as by `--trainer.logger CSVLogger`"}
_OWN = "install it, or, if it is yours, put its folder on PYTHONPATH"
_ALIKE = 0.8  # names of classes that may have been mixed up; of LogSNR and LogSNRGrid it is .75

_KEY = re.compile(r'Parser key "(.+?)":(.*)', re.DOTALL)
_MEANS_NOTHING = re.compile(
    r"Does not validate|Subtypes:|Errors:|Expected a? ?<class 'NoneType'>|Expected a path|Given value type:|"
    r"Subclass types expect|a class path \(str\)|a dict with"
)


@contextmanager
def configuration_errors(doing: str) -> Iterator[None]:
    """Around reading a configuration and building what it names: whatever is raised there, the configuration led to.

    With ``LDMPROBE_TRACEBACK=1`` in the environment nothing is changed, for those who look for a fault in a class of
    their own.

    Args:
        doing: what cannot be done, such as "read".

    Raises:
        ConfigurationError: in place of any other exception; the innermost one that was meant for the user, if there is
            one.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get("LDMPROBE_TRACEBACK") == "1":
            raise
        raise (meant_for_the_user(error) or _told(error, doing)) from error


def meant_for_the_user(error: BaseException) -> ConfigurationError | None:
    """The ConfigurationError behind ``error``, if there is one: Lightning and jsonargparse wrap what constructors
    raise, and W&B has errors of its own for what a user can put right.
    """
    for cause in _chain(error):
        if isinstance(cause, ConfigurationError):
            return cause
        if (told := start_error(cause)) is not None:
            return told
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _told(error: Exception, doing: str) -> ConfigurationError:
    option, reason = _option(error) if isinstance(error, ArgumentError) else ("", "")
    if (module := _not_installed(str(error))) is not None:
        extra = EXTRAS.get(module)
        advice = f"`pip install 'ldmprobe[{extra}]'`" if extra else _INSTALL.get(module, _OWN)
        told = f"{option or 'The configuration'} needs the Python module {module!r}, which is not installed: {advice}."
    elif option == "model.scheduler" and {*re.findall(r"\w+", reason)} & {*lr_scheduler.__all__}:
        told = (
            "model.scheduler is the noise schedule, and what it names is a schedule of the learning rate; write it as "
            "the model's `lr_scheduler`."
        )
    elif (number := re.fullmatch(r"Expected a float\b.*(?:Got|Given) value: (\S+?)\)?", reason)) is not None:
        name = option.rpartition(".")[2]
        told = f"{option} is {number[1]!r}; expected a finite number, such as {name}: 1.0e-3."
    elif isinstance(error, ArgumentError):
        told = (
            f"{option or 'The configuration'} cannot be {doing}: {reason}.{_meant(reason)} Compare with "
            "configs/digits.yaml and `ldmprobe fit --help`."
        )
    else:
        told = (
            f"{_class_being_built(error) or 'The configuration'} cannot be {doing} as configured "
            f"({type(error).__name__}: {' '.join(str(error).split())[:500]}). Compare with configs/digits.yaml and "
            "`ldmprobe fit --help`; LDMPROBE_TRACEBACK=1 shows where it comes from."
        )
    return ConfigurationError(told)


def _option(error: ArgumentError) -> tuple[str, str]:
    """The innermost option that jsonargparse's chain of errors is about, as ``model.optimizer``, and why its value is
    none.
    """
    messages = [str(cause) for cause in _chain(error)]
    named = [found for message in messages if (found := _KEY.match(message)) is not None]
    text = named[-1][2] if named else messages[0]
    lines = [line for each in text.splitlines() if (line := each.strip(" -")) and not _MEANS_NOTHING.match(line)]
    others = [f"({line})" for line in lines if line.startswith("Given value:") and "class_path" not in lines[0]]
    said = [line for line in lines if not line.startswith(("Given value:", "Not a valid subclass"))] or lines[:1]
    reason = re.sub(r"<class '(.+?)'>", r"\1", " ".join([*said, *others]))
    return ".".join(key for key, _ in groupby(found[1] for found in named)), reason[:500].rstrip(".")


def _meant(reason: str) -> str:
    """Return the class that one of no known name may have been meant for, as a question; "" where there is none."""
    if (dotted := re.search(r"module '?([\w.]+)'? has no attribute '?(\w+)", reason)) is not None:
        return closest(dotted[2], [*dir(sys.modules.get(dotted[1])), *ldmprobe.__all__], _ALIKE)
    if (bare := re.search(r"(?:subclass of \w+\. Got value|import path string): (\w+)(?: |$)", reason)) is not None:
        return closest(bare[1], [*ldmprobe.__all__, *ldmprobe.callbacks.__all__], _ALIKE)
    return ""


def _not_installed(message: str) -> str | None:
    """The top-level module that is said to be missing, and is."""
    missing = re.search(r"(?:No module named '|Requirement '|Neither `)(\w+)", message)
    return missing[1] if missing and find_spec(missing[1]) is None else None


def _class_being_built(error: Exception) -> str | None:
    """The outermost constructor that the error went through."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    built = (each.f_locals["self"] for each in frames if each.f_code.co_name == "__init__" and "self" in each.f_locals)
    return next((type(one).__name__ for one in built), None)
