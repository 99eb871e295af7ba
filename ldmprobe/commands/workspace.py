"""``ldmprobe workspace``: a saved view of Weights & Biases for runs like one that is here."""

from __future__ import annotations

from pathlib import Path

from ldmprobe.commands.options import Parser, option


def parser(command: str) -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        command,
        "RUN_DIR [--project NAME --entity NAME --save]",
        "Lay out what a run sends to Weights & Biases: the verdict, numbers over training, noise levels and pictures, "
        "each in a section. Printed as JSON, without a connection; with --save, a view of the project.",
        "runs/digits --project digits --entity me --save",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of a run")
    option(parser, "--project NAME", "project that the view is for", default="ldmprobe")
    option(parser, "--entity NAME", "user or team that the project belongs to", default="")
    parser.add_argument("--save", action="store_true", help="save it there, with the key of `wandb login`")
    return parser


def run(argv: list[str]) -> int:
    """Print the workspace for the run directory that ``argv`` names as JSON, or save it in a project.

    Raises:
        ConfigurationError: there are no records in it, an extra is missing, or Weights & Biases refuses.
    """
    args = parser(argv[0]).parse_args(argv[1:])
    if args.save and not args.entity:
        parser(argv[0]).error("--save needs --entity NAME, the user or team that the project belongs to")
    from ldmprobe.tracking.workspace import as_json, saved, workspace_of

    workspace = workspace_of(args.run_dir, args.entity, args.project)
    print(saved(workspace) if args.save else as_json(workspace))
    return 0
