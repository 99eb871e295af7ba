"""The ``ldmprobe`` command. Each subcommand is a module of ``ldmprobe.commands``, imported when it is called."""

from __future__ import annotations

import os
import select
import sys
from argparse import ArgumentParser
from importlib import import_module

from ldmprobe import __version__
from ldmprobe.commands.options import Parser
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.plain_text import make_output_plain, plain

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
}
_MODULES = {"validate": "fit", "test": "fit"}  # of the others, the command's own name


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
        return int(import_module(f"ldmprobe.commands.{_MODULES.get(argv[0], argv[0])}").run(argv))
    _parser().parse_args(argv)
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


def _parser() -> Parser:
    parser = Parser(
        "",
        "COMMAND [options]",
        "Train latent diffusion models and see, per noise level, what they have learned.",
        "fit --config configs/digits.yaml",
    )
    parser.add_argument("--version", action="version", version=f"ldmprobe {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands", parser_class=ArgumentParser
    )
    for name, purpose in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    return parser


def _meant_for_the_user(error: Exception) -> ConfigurationError | None:
    if isinstance(error, ConfigurationError):
        return error
    from ldmprobe.configuration.errors import meant_for_the_user

    return meant_for_the_user(error)


if __name__ == "__main__":
    sys.exit(main())
