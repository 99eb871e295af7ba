"""``ldmprobe fit``, ``validate`` and ``test``: Lightning's Trainer, from a YAML file."""

from __future__ import annotations

from ldmprobe.commands.options import Parser

_DESCRIPTIONS = {
    "fit": "Train or finetune from a YAML file.",
    "validate": "Measure a checkpoint's loss on held-out data.",
    "test": "Measure a checkpoint's loss on test data.",
}


def run(argv: list[str]) -> int:
    """Carry out the command that ``argv`` begins with.

    Raises:
        ConfigurationError: anything a user can put right, before training.
    """
    command, *arguments = argv
    if {"-h", "--help"}.intersection(arguments):
        _short_help(command).parse_args(["--help"])
    from ldmprobe.configuration.cli import run

    run([command, *("--help" if argument == "--help_all" else argument for argument in arguments)])
    return 0


def _short_help(command: str) -> Parser:
    parser = Parser(
        command,
        "--config FILE [options]",
        _DESCRIPTIONS[command],
        "--config configs/digits.yaml --trainer.max_steps 2000",
    )
    parser.add_argument(
        "--help_all", action="store_true", help="list every setting of the Trainer, with all known classes"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; of several, later ones override earlier ones")
    parser.add_argument("--run_dir", metavar="DIR", help="directory that the run writes to (default: runs/run)")
    parser.add_argument(
        "--ckpt_path", metavar="FILE", help='checkpoint to start from; "last" is the newest in the run directory'
    )
    parser.add_argument("--print_config", action="store_true", help="print the whole configuration and exit")
    parser.add_argument(
        "--model.init_args.NAME", metavar="VALUE", help="any setting of the configuration can be given here, too"
    )
    parser.add_argument(
        "--model.help",
        metavar="CLASS",
        help="list the arguments of a class, such as LatentDiffusion; --data.help and --trainer.callbacks.help do the same",
    )
    return parser
