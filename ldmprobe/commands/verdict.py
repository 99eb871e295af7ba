"""``ldmprobe verdict``: what a run's records say, and what to do next."""

from __future__ import annotations

import json
import sys
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
    from ldmprobe.diffusion.measured_grid import MeasuredGrid
    from ldmprobe.io.store import RecordStore
    from ldmprobe.probing.class_information import CURVE
    from ldmprobe.probing.denoising_record import PROBE
    from ldmprobe.probing.judge import judge
    from ldmprobe.probing.recipe import recipe_advice
    from ldmprobe.probing.verdict import State
    from ldmprobe.tracking.run_verdict import judged_records

    records = judged_records(args.run_dir)
    verdict = judge(records)
    if args.json:
        print(json.dumps(verdict.as_dict(), indent=2, allow_nan=False))
    else:
        print(plain(verdict.in_full))
        if verdict.state not in (State.CANNOT_SAY, State.BROKEN):
            print(plain(f"  {MeasuredGrid(str(args.run_dir)).advice}"))
            last = RecordStore(args.run_dir).last_before(PROBE, sys.maxsize)
            if last is not None and (told := last.provenance.get("notes", {}).get(CURVE)):
                print(plain(f"  {told}"))
            if recipe := recipe_advice(records):
                print(plain(f"  {recipe}"))
    return verdict.state.exit_code
