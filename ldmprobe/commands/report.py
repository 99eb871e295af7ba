"""``ldmprobe report``: a run's page, written anew."""

from __future__ import annotations

from pathlib import Path

from ldmprobe.commands.options import Parser, option
from ldmprobe.io.plain_text import plain


def parser(command: str) -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        command,
        "RUN_DIR [--out FILE]",
        "Write one self-contained HTML page from the records in a run directory.",
        "runs/digits",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of a run")
    option(parser, "--out FILE", "HTML file to write (default: RUN_DIR/report.html)", Path)
    return parser


def run(argv: list[str]) -> int:
    """Write the report of the run directory that ``argv`` names.

    Raises:
        ConfigurationError: there are no records in it.
    """
    args = parser(argv[0]).parse_args(argv[1:])
    from ldmprobe.tracking.report import write_report

    print(plain(write_report(args.run_dir, args.out)))
    return 0
