"""All commands, each a module of ``ldmprobe.commands`` that is imported when it is called, and the whole command
line's parser.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Protocol, cast

from ldmprobe import __version__
from ldmprobe.commands.options import Parser

COMMANDS = {
    "init": "write a configuration to begin with",
    "fit": "train or finetune from a YAML file, probing on the way",
    "validate": "measure a checkpoint's loss on held-out data",
    "test": "measure a checkpoint's loss on test data",
    "probe": "probe a checkpoint or a diffusers pipeline, without training",
    "sample": "draw a grid of samples",
    "cache": "encode a configuration's images and captions once, for training",
    "export": "write a checkpoint as a diffusers pipeline, with a model card",
    "verdict": "say what a run has learned, what is wrong, and what to do next",
    "report": "write one HTML page about a run",
    "workspace": "lay out what a run sends to Weights & Biases",
    "compare": "compare runs with the first of them: one HTML page and one table",
    "audit": "prove that a configuration's probes leave its training as it is",
    "completion": "print what has a shell complete commands and options",
}
_MODULES = {"validate": "fit", "test": "fit"}  # of the others, the command's own name


class Command(Protocol):
    """What the module of a command has."""

    def parser(self, command: str) -> Parser:
        """Return the parser of the command's arguments; nothing heavy is imported for it."""

    def run(self, argv: list[str]) -> int:
        """Carry out the command that ``argv`` begins with; return the exit code."""


def command_named(name: str) -> Command:
    """Return the module of a command."""
    return cast("Command", import_module(f"ldmprobe.commands.{_MODULES.get(name, name)}"))


def command_line(arguments: Callable[[str], Sequence[ArgumentParser]] = lambda name: ()) -> Parser:
    """Return the parser of ``ldmprobe COMMAND``.

    Args:
        arguments: parsers whose arguments a command gets; default: none has any.
    """
    parser = Parser(
        "",
        "COMMAND [options]",
        "Train latent diffusion models and see, per noise level, what they have learned.",
        "fit --config configs/digits.yaml",
    )
    parser.add_argument("-V", "--version", action="version", version=f"ldmprobe {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands", parser_class=ArgumentParser
    )
    for name, purpose in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False, parents=arguments(name))
    return parser
