"""From whatever a configuration makes a library raise to one sentence for its author."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ldmprobe.errors import ConfigurationError
from ldmprobe.tracking.wandb import start_error


@contextmanager
def configuration_errors(doing: str) -> Iterator[None]:
    """Around reading a configuration and building what it names: whatever is raised there, the configuration led to.

    With ``LDMPROBE_TRACEBACK=1`` in the environment nothing is changed, for those who look for a fault in a class of their own.

    Args:
        doing: what cannot be done, such as "read".

    Raises:
        ConfigurationError: in place of any other exception; the innermost one that was meant for the user, if there is one.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get("LDMPROBE_TRACEBACK") == "1":
            raise
        raise (meant_for_the_user(error) or _told(error, doing)) from error


def meant_for_the_user(error: BaseException) -> ConfigurationError | None:
    """The ConfigurationError behind ``error``, if there is one: Lightning and jsonargparse wrap what constructors raise, and W&B
    has errors of its own for what a user can put right."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigurationError):
            return cause
        if (told := start_error(cause)) is not None:
            return told
        cause = cause.__cause__ or cause.__context__
    return None


def _told(error: Exception, doing: str) -> ConfigurationError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    return ConfigurationError(
        f"{_class_being_built(error) or 'The configuration'} cannot be {doing} as configured ({reason}). Compare with configs/digits.yaml and "
        "`ldmprobe fit --help`; LDMPROBE_TRACEBACK=1 shows where it comes from."
    )


def _class_being_built(error: Exception) -> str | None:
    """The outermost constructor that the error went through."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "__init__" and "self" in frame.tb_frame.f_locals:
            return type(frame.tb_frame.f_locals["self"]).__name__
        frame = frame.tb_next
    return None
