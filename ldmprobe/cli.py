"""The ``ldmprobe`` command. Each subcommand is a module of ``ldmprobe.commands``, imported when it is called."""

from __future__ import annotations

import os
import select
import sys

from ldmprobe.commands.table import COMMANDS, command_line, command_named
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.plain_text import make_output_plain, plain


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code, which is 2 for anything that the user can put right, and 141 (128 +
    SIGPIPE) where whoever read the output has gone, as in ``ldmprobe init | head -1``.
    """
    argv = sys.argv[1:] if argv is None else argv
    make_output_plain()
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141
        if (told := _meant_for_the_user(error)) is None:
            raise
        print(f"ldmprobe: error: {plain(told)}", file=sys.stderr)
        return 2


def _run(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        return command_named(argv[0]).run(argv)
    command_line().parse_args(argv)
    return 0


def _nobody_reads() -> bool:
    """Return whether standard output is a pipe that nobody reads anymore, and if so have the rest of it dropped."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone


def _meant_for_the_user(error: Exception) -> ConfigurationError | None:
    if isinstance(error, ConfigurationError):
        return error
    from ldmprobe.configuration.errors import meant_for_the_user

    return meant_for_the_user(error)


if __name__ == "__main__":
    sys.exit(main())
