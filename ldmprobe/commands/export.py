"""``ldmprobe export``: a checkpoint as the folder of a diffusers pipeline or autoencoder, with a model card."""

from __future__ import annotations

from pathlib import Path

from ldmprobe.commands.options import Parser, add_base, add_weights
from ldmprobe.io.plain_text import plain


def parser(command: str) -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        command,
        "CHECKPOINT DIR [options]",
        "Write a checkpoint as a folder with a model card: a diffusers pipeline, for "
        "DiffusionPipeline.from_pretrained; a LoRA, for load_lora_weights; or an autoencoder with the measured scale "
        "of its latents, for LatentCodec.",
        "runs/digits/checkpoints/last.ckpt exported/digits",
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="checkpoint of LatentDiffusion or Autoencoding (.ckpt file, or folder if sharded)",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="new folder to write to")
    parser.add_argument("--merge", action="store_true", help="add a LoRA to the weights, and export the whole pipeline")
    parser.add_argument(
        "--per-channel", action="store_true", help="a scale for each channel of an autoencoder's latents"
    )
    add_base(parser)
    add_weights(parser)
    return parser


def run(argv: list[str]) -> int:
    """Export the checkpoint that ``argv`` names.

    Raises:
        ConfigurationError: it cannot be exported, or the folder cannot be written.
    """
    args = parser(argv[0]).parse_args(argv[1:])
    from ldmprobe.training.export import export

    how = (args.merge, args.base, args.per_channel, args.ema_length, args.lora_strength)
    print(plain(export(args.checkpoint, args.folder, *how)))
    return 0
