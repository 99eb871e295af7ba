"""From whatever a configuration makes a library raise to one sentence for its author."""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from torch.optim import lr_scheduler

import ldmprobe.callbacks
from ldmprobe.errors import EXTRAS, ConfigurationError, closest
from ldmprobe.tracking.wandb import start_error

_INSTALL = {"wandb": "`pip install wandb`, or log elsewhere, as by `--trainer.logger CSVLogger`"}
_OWN = "install it, or, if it is yours, put its folder on PYTHONPATH"
_ALIKE = 0.8  # names of classes that may have been mixed up; of LogSNR and LogSNRGrid it is .75
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
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigurationError):
            return cause
        if (told := start_error(cause)) is not None:
            return told
        cause = cause.__cause__ or cause.__context__
    return None


def _told(error: Exception, doing: str) -> ConfigurationError:
    option, reason = _option(str(error)) if isinstance(error, ArgumentError) else (None, "")
    if (module := _not_installed(str(error))) is not None:
        extra = EXTRAS.get(module)
        advice = f"`pip install 'ldmprobe[{extra}]'`" if extra else _INSTALL.get(module, _OWN)
        return ConfigurationError(
            f"{option or 'The configuration'} needs the Python module {module!r}, which is not installed: {advice}."
        )
    if isinstance(error, ArgumentError):
        if (told := _mistaken(option, reason)) is not None:
            return ConfigurationError(told)
        return ConfigurationError(
            f"{option or 'The configuration'} cannot be {doing}: {reason}.{_meant(str(error))} Compare with "
            "configs/digits.yaml and `ldmprobe fit --help`."
        )
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    return ConfigurationError(
        f"{_class_being_built(error) or 'The configuration'} cannot be {doing} as configured ({reason}). Compare with "
        "configs/digits.yaml and `ldmprobe fit --help`; LDMPROBE_TRACEBACK=1 shows where it comes from."
    )


def _mistaken(option: str | None, reason: str) -> str | None:
    """Return what to write instead, of mistakes that jsonargparse has many words for."""
    if option == "model.scheduler" and {*re.findall(r"\w+", reason)} & {*lr_scheduler.__all__}:
        return (
            "model.scheduler is the noise schedule, and what it names is a schedule of the learning rate; write it as "
            "the model's `lr_scheduler`."
        )
    if (number := re.search(r'Parser key "(\w+)": Expected a float .*\(Given value: (\S+)\. Got', reason)) is not None:
        return f"{option}.{number[1]} is {number[2]!r}; expected a finite number, such as {number[1]}: 1.0e-3."
    return None


def _meant(message: str) -> str:
    """Return the class that one of no known name may have been meant for, as a question; "" where there is none."""
    if (dotted := re.search(r"module '?([\w.]+)'? has no attribute '?(\w+)", message)) is not None:
        return closest(dotted[2], [*dir(sys.modules.get(dotted[1])), *ldmprobe.__all__], _ALIKE)
    if (bare := re.search(r"(?m)(?:subclass of \w+\. Got value|import path string): (\w+)$", message)) is not None:
        return closest(bare[1], [*ldmprobe.__all__, *ldmprobe.callbacks.__all__], _ALIKE)
    return ""


def _option(message: str) -> tuple[str | None, str]:
    """The innermost option that jsonargparse's tree of attempts is about, as ``model.optimizer``, and why its value is
    none.
    """
    *outer, inner = re.split(r"^( *)Parser key \"(.+?)\":", message, flags=re.MULTILINE)
    indent, options = len(outer[-2]) if outer else 0, outer[2::3]
    lines: list[str] = []
    for line in inner.splitlines():
        text = line.strip(" -")
        if text and indent and len(line) - len(line.lstrip()) <= indent:
            break  # of an option further out
        if lines and text.startswith(("Given value:", "Not a valid subclass")):
            lines += [f"({text})"] if "class_path" not in lines[0] and text.startswith("Given") else []
            break
        if text and not _MEANS_NOTHING.match(text):
            lines.append(text)
    reason = re.sub(r"<class '(.+?)'>", r"\1", " ".join(lines))
    return ".".join(options) or None, reason[:500].rstrip(".")


def _not_installed(message: str) -> str | None:
    """The top-level module that is said to be missing, and is."""
    missing = re.search(r"(?:No module named '|Requirement '|Neither `)(\w+)", message)
    return missing[1] if missing and find_spec(missing[1]) is None else None


def _class_being_built(error: Exception) -> str | None:
    """The outermost constructor that the error went through."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "__init__" and "self" in frame.tb_frame.f_locals:
            return type(frame.tb_frame.f_locals["self"]).__name__
        frame = frame.tb_next
    return None
