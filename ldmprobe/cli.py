"""The ``ldmprobe`` command. Imports nothing heavy before it is needed: ``--help`` and ``--version`` answer at once."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from ldmprobe import __version__
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.plain_text import make_output_plain, plain

_TRAINER_COMMANDS = {
    "fit": "train or finetune from a YAML file, probing on the way",
    "validate": "held-out loss of a checkpoint",
    "test": "the same on the test loader",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for anything a user can put right)."""
    argv = sys.argv[1:] if argv is None else argv
    make_output_plain()
    try:
        if argv and argv[0] in _TRAINER_COMMANDS:
            from ldmprobe.training.cli import run

            run(argv)
            return 0
        if argv and argv[0] == "audit":
            from ldmprobe.audit.audit import audit

            return audit(argv[1:])
        if argv and argv[0] == "cache":
            from ldmprobe.training.cache import cache

            return cache(argv[1:])
        return _other_command(argv)
    except ConfigurationError as error:
        print(f"ldmprobe: error: {plain(error)}", file=sys.stderr)
        return 2


def _other_command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ldmprobe",
        description="Train latent diffusion models and see, per noise level, what they have learnt.",
        epilog="ldmprobe fit --config configs/digits.yaml   (ldmprobe fit --help lists everything a configuration can hold)",
    )
    parser.add_argument("--version", action="version", version=f"ldmprobe {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in _TRAINER_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    commands.add_parser("audit", help="prove that a configuration's probes leave its training as it is", add_help=False)
    commands.add_parser("cache", help="encode a configuration's images and captions once, for training", add_help=False)

    probe = commands.add_parser("probe", help="probe a checkpoint or a diffusers pipeline, without training")
    probe.add_argument(
        "model", help="checkpoint of LatentDiffusion (.ckpt), or folder or hub id of a diffusers pipeline"
    )
    probe.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new directory for records, figures, report.html"
    )
    probe.add_argument(
        "--data", metavar="DATASET", help="as ImageData's dataset: for everything that needs real latents"
    )
    probe.add_argument("--image-column", default="image", help="of --data (default: image)")
    probe.add_argument("--label-column", help="of --data, for class-conditional models")
    probe.add_argument(
        "--caption-column", help="of --data, for text-to-image models (without it, all its images have the --prompt)"
    )
    probe.add_argument("--image-size", type=int, help="that --data's images are resized to")
    probe.add_argument("--num-reference", type=int, default=4096, help="real images to compare with (default: 4096)")
    _sampling_arguments(probe, num_samples=256)

    sample = commands.add_parser("sample", help="draw a grid of samples")
    sample.add_argument(
        "model", help="checkpoint of LatentDiffusion (.ckpt), or folder or hub id of a diffusers pipeline"
    )
    sample.add_argument("--out", type=Path, default=Path("samples.png"), help="PNG to write (default: samples.png)")
    sample.add_argument("--columns", type=int, default=10, help="of the grid (default: 10)")
    _sampling_arguments(sample, num_samples=50)

    export = commands.add_parser("export", help="a checkpoint as a diffusers pipeline folder, with a model card")
    export.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="of LatentDiffusion (.ckpt, or a sharded one's folder)"
    )
    export.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="a new folder, for DiffusionPipeline.from_pretrained, or load_lora_weights",
    )
    export.add_argument(
        "--merge", action="store_true", help="of a LoRA: the whole pipeline, the LoRA added to its weights"
    )
    for command in (probe, sample, export):
        command.add_argument(
            "--base",
            metavar="FOLDER_OR_HUB_ID_OR_CKPT",
            help="in the place of the pretrained model that the checkpoint names, such as a folder that has moved",
        )

    report = commands.add_parser("report", help="one self-contained HTML page from a run directory")
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: RUN_DIR/report.html")

    compare = commands.add_parser("compare", help="runs against the first of them: one HTML page and one table")
    compare.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help="two or more")
    compare.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new directory, or that of an earlier comparison"
    )
    compare.add_argument(
        "--labels", nargs="+", metavar="NAME", help="what to call the runs (default: their directories' names)"
    )

    args = parser.parse_args(argv)
    if args.command == "compare":
        from ldmprobe.comparison.compare import write_comparison

        print(plain(write_comparison(args.run_dirs, args.out, args.labels)))
        return 0
    if args.command == "report":
        from ldmprobe.tracking.report import write_report

        print(plain(write_report(args.run_dir, args.out)))
        return 0
    if args.command == "export":
        from ldmprobe.training.export import export as write_pipeline

        print(plain(write_pipeline(args.checkpoint, args.folder, args.merge, args.base)))
        return 0
    from ldmprobe import standalone

    try:
        print(plain(standalone.probe(args) if args.command == "probe" else standalone.sample(args)))
    except ConfigurationError as error:
        raise ConfigurationError(_as_options(str(error), vars(args))) from error
    return 0


def _as_options(message: str, settings: Iterable[str]) -> str:
    """A message with settings as shared code and configurations call them, `label_column`, by this command's options, --label-column."""
    names = "|".join(settings)
    return re.sub(rf"(the data's )?`({names})`", lambda found: f"--{found[2].replace('_', '-')}", message)


def _sampling_arguments(parser: argparse.ArgumentParser, num_samples: int) -> None:
    parser.add_argument("--num-samples", type=int, default=num_samples, help=f"(default: {num_samples})")
    parser.add_argument("--num-steps", type=int, default=50, help="DDIM steps (default: 50)")
    parser.add_argument(
        "--timestep-spacing", choices=["leading", "trailing", "linspace"], help="default: the scheduler's"
    )
    parser.add_argument(
        "--guidance-scale", type=float, default=1.0, help="of classifier-free guidance (default: 1, none)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="latents through the network at once (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise (default: 0)")
    parser.add_argument(
        "--prompt",
        nargs="+",
        metavar="TEXT",
        help="of text-to-image models: samples have these in turn (default: none)",
    )
    parser.add_argument("--revision", help="of a pipeline on the hub: branch, tag or commit")
    parser.add_argument("--variant", help='of a pipeline\'s weights, such as "fp16"')
    parser.add_argument(
        "--text-precision",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of a pipeline's text encoders; half of it is half their memory (default: float32)",
    )
    parser.add_argument("--local-files-only", action="store_true", help="do not ask the hub, only its cache")
    parser.add_argument("--device", default=None, help='such as "cuda" (default: cuda where there is one, else cpu)')


if __name__ == "__main__":
    sys.exit(main())
