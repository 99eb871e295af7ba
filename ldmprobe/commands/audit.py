"""``ldmprobe audit``: the proof, on a user's own configuration, that its probes leave training as it is."""

from __future__ import annotations

from ldmprobe.commands.options import Parser, integer, option


def parser(command: str) -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        command,
        "--config FILE [--steps N] [options of ldmprobe fit]",
        "Prove that the probes of a configuration leave its training bit-identical, or name what they change. All "
        "other options are those of `ldmprobe fit`. Exit code: 0 undisturbed, 1 disturbed, 2 could not be run.",
        "--config configs/digits.yaml",
    )
    option(parser, "--steps N", "number of optimizer steps to run", integer(2), 20)
    return parser


def run(argv: list[str]) -> int:
    """Audit the configuration that ``argv`` names; return 0 (undisturbed) or 1.

    Raises:
        ConfigurationError: the configuration names no probe, or cannot be run.
    """
    args, fit_arguments = parser(argv[0]).parse_known_args(argv[1:])
    from ldmprobe.audit.audit import audit

    return audit(fit_arguments, args.steps)
