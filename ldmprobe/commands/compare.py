"""``ldmprobe compare``: runs side by side."""

from __future__ import annotations

from pathlib import Path

from ldmprobe.commands.options import Parser, option
from ldmprobe.io.plain_text import plain


def parser(command: str) -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        command,
        "RUN_DIR RUN_DIR ... --out DIR [--labels NAME ...]",
        "Compare runs with the first of them: paired differences per noise level, and steps to the same quality, as "
        "one HTML page and one table.",
        "runs/uniform runs/min_snr --out compared",
    )
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help="directories of two or more runs")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="new directory, or that of an earlier comparison"
    )
    option(parser, "--labels NAME", "names of the runs (default: their directories' names)", nargs="+")
    return parser


def run(argv: list[str]) -> int:
    """Compare the run directories that ``argv`` names.

    Raises:
        ConfigurationError: they cannot be compared.
    """
    args = parser(argv[0]).parse_args(argv[1:])
    from ldmprobe.comparison.compare import write_comparison

    print(plain(write_comparison(args.run_dirs, args.out, args.labels)))
    return 0
