"""``ldmprobe fit``, ``validate`` and ``test``: Lightning's Trainer, from a YAML file."""

from __future__ import annotations

from ldmprobe.commands.options import Parser, option

_DESCRIPTIONS = {
    "fit": "Train or finetune from a YAML file.",
    "validate": "Measure a checkpoint's loss on held-out data.",
    "test": "Measure a checkpoint's loss on the split `test`, where it is not the held-out one.",
}


def parser(command: str) -> Parser:
    """Return a parser of the arguments that are told of first; all are those of Lightning's CLI."""
    parser = Parser(
        command,
        "--config FILE [options]",
        _DESCRIPTIONS[command],
        "--config configs/digits.yaml --trainer.max_steps 2000",
    )
    parser.add_argument("--help_all", action="store_true", help="list every setting, with all known classes")
    parser.add_argument("--print_config", action="store_true", help="print the whole configuration and exit")
    option(parser, "--config FILE", "YAML file; of several, later ones override earlier ones")
    option(parser, "--run_dir DIR", "directory that the run writes to (default: runs/run)")
    option(parser, "--ckpt_path FILE", 'checkpoint to start from; "last" is the newest in the run directory')
    option(parser, "--model.init_args.NAME VALUE", "any setting of the configuration can be given here, too")
    option(parser, "--model.help CLASS", "list a class's arguments; so do --data.help and --trainer.callbacks.help")
    return parser


def run(argv: list[str]) -> int:
    """Carry out the command that ``argv`` begins with.

    Raises:
        ConfigurationError: anything a user can put right, before training.
    """
    command, *arguments = argv
    if {"-h", "--help"}.intersection(arguments):
        parser(command).parse_args(["--help"])
    from ldmprobe.configuration.cli import run

    run([command, *("--help" if argument == "--help_all" else argument for argument in arguments)])
    return 0
