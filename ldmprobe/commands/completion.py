"""``ldmprobe completion``: a script that has bash or zsh complete commands, options and files."""

from __future__ import annotations

from pathlib import Path

from ldmprobe.commands.options import Parser
from ldmprobe.commands.table import command_line, command_named
from ldmprobe.errors import needing

_PATHS = {"FILE", "DIR", "RUN_DIR", "CHECKPOINT", "MODEL", "DATASET"}  # what stands for a value that may be a path


def parser(command: str) -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        command,
        "bash|zsh",
        "Print a script that has the shell complete commands, options and files. Values of `fit` are not completed, "
        "nor are settings of the classes that a configuration names.",
        "bash > ~/.local/share/bash-completion/completions/ldmprobe",
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="shell that the script is for")
    return parser


def run(argv: list[str]) -> int:
    """Print the script for the shell that ``argv`` names.

    Raises:
        ConfigurationError: shtab is not installed.
    """
    args = parser(argv[0]).parse_args(argv[1:])
    with needing("shtab", "`ldmprobe completion`"):
        import shtab
    print(shtab.complete(command_line(lambda name: [_arguments(name)]), args.shell))
    return 0


def _arguments(command: str) -> Parser:
    """Return a command's parser, with what else ``fit`` and its like take, and with files where they are asked for."""
    import shtab

    parser = command_named(command).parser(command)
    if command in ("fit", "validate", "test"):
        from ldmprobe.configuration.parts import options_of

        for name in options_of(command):
            if name not in parser.options:
                parser.add_argument(name)
    for action in parser._actions:
        if action.type is Path or action.metavar in _PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined] # where shtab looks
    return parser
