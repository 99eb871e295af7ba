"""``ldmprobe cache``: encode the images and captions of a configuration once, into a folder that training reads."""

from __future__ import annotations

import os
from pathlib import Path

from ldmprobe.commands.options import PRECISIONS, Parser, integer, option
from ldmprobe.io.plain_text import plain


def parser(command: str) -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        command,
        "--config FILE [--out DIR] [options] [options of ldmprobe fit]",
        "Encode the images and captions of a configuration once; training then reads them with "
        "`--data.init_args.latents DIR`. All other options are those of `ldmprobe fit`. An interrupted run continues "
        "where it stopped.",
        "--config configs/digits.yaml --out latents/digits",
    )
    option(parser, "--out DIR", "folder to write to (default: latents/ and a hash of the contents)", Path)
    option(parser, "--dtype", "precision of the stored latents", default="float32", choices=PRECISIONS)
    option(parser, "--batch-size N", "images encoded at once", integer(1), 32)
    option(parser, "--rows-per-shard N", "rows, or captions, in one file", integer(1), 1024)
    option(
        parser,
        "--num-shards N",
        "processes that share the work, as torchrun says",
        integer(1),
        os.environ.get("WORLD_SIZE", "1"),
    )
    option(parser, "--shard K", "number of this process, as torchrun says", integer(0), os.environ.get("RANK", "0"))
    option(parser, "--device NAME", "where to encode (default: this process's GPU if there is one, else cpu)")
    return parser


def run(argv: list[str]) -> int:
    """Encode the data of the configuration that ``argv`` names.

    Raises:
        ConfigurationError: anything a user can put right.
    """
    args, fit_arguments = parser(argv[0]).parse_known_args(argv[1:])
    import torch

    from ldmprobe.configuration.parts import build_parts
    from ldmprobe.data.latent_writer import write_cache
    from ldmprobe.models.device import move

    model, data = build_parts(fit_arguments)
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    move((model.codec, model.conditioning), args.device or gpu)
    folder, complete = write_cache(
        data,
        model.codec,
        model.conditioning,
        model.network,
        args.out,
        args.dtype,
        args.shard,
        args.num_shards,
        args.rows_per_shard,
        args.batch_size,
    )
    if complete:
        command = " ".join(["ldmprobe fit", *fit_arguments, f"--data.init_args.latents {folder}"])
        print(plain(f"{folder} is complete. Train from it: {command}"))
    else:
        print(plain(f"{folder}: this process's part is done; others are still missing."))
    return 0
