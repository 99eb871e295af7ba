"""``ldmprobe verdict``: what a run's records say, and what to do next."""

from __future__ import annotations

import json
from pathlib import Path

from ldmprobe.commands.options import Parser
from ldmprobe.io.plain_text import plain


def parser(command: str) -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        command,
        "RUN_DIR [--json]",
        "Say what each band of noise levels has learned, what is wrong, and what to do next, from a run's records "
        "alone. Exit code: 0 fine, 1 look, 2 cannot say.",
        "runs/digits",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of a run")
    parser.add_argument("--json", action="store_true", help="print it as JSON, for programs")
    return parser


def run(argv: list[str]) -> int:
    """Print the verdict on the run directory that ``argv`` names; return 0 (fine), 1 (look) or 2 (cannot say).

    Raises:
        ConfigurationError: there are no records in it.
    """
    args = parser(argv[0]).parse_args(argv[1:])
    from ldmprobe.probing.judge import judge
    from ldmprobe.tracking.run_verdict import judged_records, told_in_full

    records = judged_records(args.run_dir)
    verdict = judge(records)
    if args.json:
        print(json.dumps(verdict.as_dict(), indent=2, allow_nan=False))
    else:
        print(plain(told_in_full(args.run_dir, records, verdict)))
    return verdict.state.exit_code
