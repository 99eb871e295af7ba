"""Text that comes from outside (names of data sets and files, prompts, errors of libraries) as it may be printed.

In a terminal an escape sequence moves the cursor, hides lines or types for the user; and a message can be as long as a
file. So the command line has whatever is printed, logged or warned of go through here.
"""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from types import TracebackType

_LONGEST_LINE = 2_000
_LONGEST = 20_000


def plain(text: object) -> str:
    """Each character that does not print as itself (control, escape, direction of writing) as a question mark; line
    ends stay. Of what is very long, the beginning and the end.
    """
    lines = (_shortened(line, _LONGEST_LINE) for line in str(text).split("\n"))
    return _shortened("\n".join(_printable(line) for line in lines), _LONGEST)


def make_output_plain() -> None:
    """Have messages that this process logs, warns of or dies of go through ``plain``, whoever they come from."""
    logging.setLogRecordFactory(_PlainRecord)
    warnings.formatwarning = _plain_warning
    sys.excepthook = _plain_exception


def _printable(line: str) -> str:
    return line if line.isprintable() else "".join(_shown(character) for character in line)


def _shown(character: str) -> str:
    if character.isprintable() or character == "\t":
        return character
    return " " if character.isspace() and character not in "\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029" else "?"


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    kept = longest * 3 // 4, longest // 4
    return f"{text[: kept[0]]} … ({len(text) - sum(kept):,} characters left out) … {text[-kept[1] :]}"


class _PlainRecord(logging.LogRecord):
    def getMessage(self) -> str:
        message = super().getMessage()
        return plain(message) if self.levelno >= logging.WARNING else "\n".join(map(_printable, message.split("\n")))

    @property
    def exc_text(self) -> str | None:
        """Return what a formatter takes in the place of formatting ``exc_info`` itself."""
        return plain("".join(traceback.format_exception(*self.exc_info)).rstrip()) if self.exc_info else None

    @exc_text.setter
    def exc_text(self, text: str | None) -> None: ...


def _plain_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{plain(f'{filename}:{lineno}: {category.__name__}: {message}')}\n"


def _plain_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(plain("".join(traceback.format_exception(kind, error, trace)).rstrip()), file=sys.stderr)
