"""``ldmprobe sample``: a grid of samples as a PNG."""

from __future__ import annotations

from pathlib import Path

from ldmprobe.commands.options import Parser, add_model, add_sampling, integer, load, option, settings_as_options
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.plain_text import plain


def run(argv: list[str]) -> int:
    """Draw the samples that ``argv`` asks for.

    Raises:
        ConfigurationError: an option is wrong, the model cannot be used, or the file cannot be written.
    """
    parser = Parser(
        "sample",
        "MODEL [--out FILE] [options]",
        "Draw a grid of samples from a checkpoint or a diffusers pipeline.",
        "runs/digits/checkpoints/last.ckpt --out samples.png",
    )
    add_model(parser)
    option(parser, "--out FILE", "new PNG file", Path, Path("samples.png"))
    option(parser, "--columns N", "columns of the grid", integer(1), 10)
    add_sampling(parser, num_samples=50)
    args = parser.parse_args(argv[1:])
    if args.out.suffix != ".png":
        raise ConfigurationError(f"--out is {args.out}; expected a file name that ends in .png.")
    if args.out.exists():
        raise ConfigurationError(f"{args.out} exists already; choose another --out.")
    with settings_as_options(args):
        model, sampling = load(args)
        _check_writable(args.out)
        from PIL import Image

        from ldmprobe.inference import image_grid, sample_images

        Image.fromarray(image_grid(sample_images(model, sampling), args.columns)).save(args.out)
    print(plain(args.out))
    return 0


def _check_writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.unlink()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}. Choose another --out.") from error
