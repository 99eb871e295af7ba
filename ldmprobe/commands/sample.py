"""``ldmprobe sample``: a grid of samples as a PNG."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ldmprobe.commands.options import (
    Parser,
    add_data,
    add_model,
    add_sampling,
    add_weights,
    further_columns,
    integer,
    load,
    option,
    settings_as_options,
)
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.plain_text import plain

if TYPE_CHECKING:
    from torch import Tensor

    from ldmprobe.data.in_order import GivenRows
    from ldmprobe.models.diffusion_model import DiffusionModel
    from ldmprobe.models.restored import Enlarged, FilledIn
    from ldmprobe.probing.sampling import Sampling


def parser(command: str) -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        command,
        "MODEL [--out FILE] [options]",
        "Draw a grid of samples from a checkpoint or a diffusers pipeline.",
        "runs/digits/checkpoints/last.ckpt --out samples.png",
    )
    add_model(parser)
    add_weights(parser)
    option(parser, "--out FILE", "new PNG file", Path, Path("samples.png"))
    option(parser, "--columns N", "columns of the grid", integer(1), 10)
    add_sampling(parser, num_samples=50)
    group = parser.add_argument_group(
        "rows and images",
        "Sample i is told what row i of --data says: a map, a layout, a sketch, an image to fill in. Those of --image, "
        "or of --data, are changed with --strength; filled in with --hole, or enlarged with --enlarge, by a model that "
        "was not trained for it.",
    )
    add_data(group)
    option(group, "--image FILE", "images to change, fill in or enlarge, in turn", Path, nargs="+")
    option(
        group,
        "--strength LOG_SNR",
        "log-SNR of the noise that images are changed through; the lower, the more is changed (0: as much noise as "
        "image)",
        float,
    )
    option(group, "--hole FILE", "image that says where to fill in: wherever it is not black", Path)
    option(
        group,
        "--paste PIXELS",
        "put the pixels outside holes back as they were, going over into the samples within PIXELS of a hole (0: at "
        "once)",
        integer(0),
    )
    option(group, "--enlarge F", "how many times smaller images are than the model's", integer(2))
    group.add_argument(
        "--match-color",
        action="store_true",
        help="give each sample the mean color of the small image that it enlarges, of --enlarge, of a model of small "
        "images with --data, or of a cascade",
    )
    option(group, "--measurement-noise STD", "how exactly they are kept, of pixels in [−1, 1]", float, 0.05)
    group = parser.add_argument_group(
        "cascade",
        "An upsampler, a model trained with LowResolution, makes samples larger. It is told their class or caption, "
        "takes as many steps, and is not guided.",
    )
    option(group, "--upsampler MODEL", "checkpoint, or diffusers pipeline, that upsamples")
    return parser


def run(argv: list[str]) -> int:
    """Draw the samples that ``argv`` asks for.

    Raises:
        ConfigurationError: an option is wrong, the model cannot be used, or the file cannot be written.
    """
    args = parser(argv[0]).parse_args(argv[1:])
    _check(args)
    if args.out.suffix != ".png":
        raise ConfigurationError(f"--out is {args.out}; expected a file name that ends in .png.")
    if args.out.exists():
        raise ConfigurationError(f"{args.out} exists already; choose another --out.")
    with settings_as_options(args):
        model, sampling = load(args)
        _check_writable(args.out)
        sampling, restored = _of_what_is_given(args, model, sampling)
        from PIL import Image

        from ldmprobe.inference import image_grid, sample_images
        from ldmprobe.models.restored import Enlarged

        _check_mending(args, Enlarged if args.upsampler else type(restored))
        upsampled = _upsampled(args.upsampler, args.device, model) if args.upsampler else None
        images = sample_images(model, sampling)
        if upsampled is not None:
            restored, images = Enlarged(images), upsampled(images, sampling)
        images = _mended(args, images, restored)
        Image.fromarray(image_grid(images, args.columns)).save(args.out)
    print(plain(args.out))
    return 0


def _check_mending(args: Namespace, restored: type[FilledIn | Enlarged | None]) -> None:
    """Raise ConfigurationError if samples do not restore what is to be put right."""
    from ldmprobe.models.restored import Enlarged, FilledIn

    if args.paste is not None and restored is not FilledIn:
        raise ConfigurationError(
            "--paste puts known pixels back, and "
            + (
                "those of an upsampler are made anew."
                if args.upsampler
                else "none are given; give --image with --hole, or --data with holes."
            )
        )
    if args.match_color and restored is not Enlarged:
        raise ConfigurationError(
            "--match-color takes the colors of small images, and none are given; give --enlarge with --image, --data "
            "for a model of small images, or --upsampler."
        )


def _mended(args: Namespace, samples: Tensor, restored: FilledIn | Enlarged | None) -> Tensor:
    """Say how far samples are off what they restore, and return them with that put right where it is asked for."""
    from ldmprobe.models.restored import Enlarged, FilledIn

    if isinstance(restored, FilledIn):
        off = f"known pixels are off by {restored.known_error(samples):.3f} (root mean square, of −1 to 1)"
        mended, option = args.paste is not None, "--paste 0"
        samples = restored.pasted(samples, args.paste) if mended else samples
    elif isinstance(restored, Enlarged):
        off = f"mean colors are off by {127.5 * restored.color_error(samples):.1f} of 255 (root mean square)"
        mended, option = args.match_color, "--match-color"
        samples = restored.matched(samples) if mended else samples
    else:
        return samples
    print(off + (", which was put right" if mended else f"; {option} puts that right"), file=sys.stderr)
    return samples


def _upsampled(name: str, device: str | None, base: DiffusionModel) -> Callable[[Tensor, Sampling], Tensor]:
    """Load the upsampler of a cascade, and return what makes the base's samples larger."""
    from ldmprobe.inference import sample_images
    from ldmprobe.models.cascade import cascaded, check_cascade
    from ldmprobe.models.guidance import ClassifierFreeGuidance
    from ldmprobe.probing.start import FromNoise
    from ldmprobe.training.checkpoint.load import load_model

    upsampler = load_model(name, device)
    check_cascade(base, upsampler)

    def upsample(images: Tensor, sampling: Sampling) -> Tensor:
        plain = replace(sampling, guidance=ClassifierFreeGuidance(), start=FromNoise())
        return sample_images(cascaded(base, upsampler, images), plain)

    return upsample


def _check(args: Namespace) -> None:
    """Raise ConfigurationError if options do not go together."""
    asked = [name for name in ("strength", "hole", "enlarge") if vars(args)[name] is not None]
    if args.image and not asked:
        raise ConfigurationError(
            "--image is an image to change, and --strength says how much, as a log-SNR; give it, such as --strength 0. "
            "Or say what of it is known: --hole FILE, or --enlarge F."
        )
    if asked and not (args.image or args.data):
        raise ConfigurationError(f"--{asked[0]} is for images; give --image, or --data.")
    if args.enlarge and len(asked) > 1:
        raise ConfigurationError(
            "--enlarge is of small images, which have no --hole and no --strength; leave those out."
        )
    if args.column and args.data is None:
        raise ConfigurationError("--column is one of a dataset; give --data.")


def _of_what_is_given(
    args: Namespace, model: DiffusionModel, sampling: Sampling
) -> tuple[Sampling, FilledIn | Enlarged | None]:
    """Give the model the conditions of --data, or of --image where it is told holes, or small images. Return the
    sampling, with a start from images or a guidance by what is known of them where one is asked for, and what samples
    restore.

    Raises:
        ConfigurationError: the model would be told of other rows than those of --image.
    """
    if not args.image and args.data is None:
        return sampling, None
    from ldmprobe.data.in_order import GivenRows
    from ldmprobe.inference import given_images, told_rows, told_small
    from ldmprobe.models.guidance import BlockMeans, KnownPixels, MeasurementGuidance
    from ldmprobe.models.restored import Enlarged, FilledIn
    from ldmprobe.probing.start import FromImages

    hole_column, enlarges = model.conditioning.hole_column, model.conditioning.small_size is not None
    if args.enlarge and enlarges and not args.image:
        raise ConfigurationError("The model is told the small images of --data itself; leave out --enlarge.")
    told_images = bool(args.image) and bool((args.hole and hole_column) or (args.enlarge and enlarges))
    if told_images and args.data is not None:
        raise ConfigurationError("The model is told --image itself, and no row of --data; leave out one of them.")
    if args.image and not told_images and args.data is None and model.conditioning.num_rows is not None:
        raise ConfigurationError(
            f"The model is told {model.conditioning.label} of rows of data, of which --image says nothing; give "
            "--data, too: sample i is told what its row i says."
        )
    rows = _rows(args, model) if args.data is not None else None
    images = rows.images if rows and not args.image else given_images(model, args.image, args.enlarge or 1)
    hole = known = small = None
    if args.hole is not None:
        known = KnownPixels(str(args.hole))
        known.check(tuple(images.shape[1:]))
        hole = known.holes(images, range(1))
    if hole is not None and hole_column is not None:
        rows = (rows or GivenRows.of(images)).with_hole(hole_column, hole[0, 0])
    if told_images and args.enlarge:
        model.conditioning = told_small(model, images)
        return sampling, Enlarged(images)
    measured = args.enlarge is not None or (hole is not None and hole_column is None)
    if rows is not None:
        conditioning = told_rows(model, rows)
        if not (conditioning.tells or measured or args.strength is not None):
            raise ConfigurationError(
                "The model is told nothing beside the noise, so that --data is of no use to it; leave it out, or give "
                "--strength to change its images, --hole to fill them in, or --enlarge."
            )
        model.conditioning = conditioning
        hole, small = conditioning.holes if hole is None else hole, conditioning.small
    if args.strength is not None:
        sampling = replace(sampling, start=FromImages(images, args.strength))
    if measured:
        operator = known or BlockMeans(args.enlarge)
        y = images if args.image and args.enlarge else operator.apply(images, range(len(images)))
        guidance = MeasurementGuidance(operator, args.measurement_noise, y=y, guidance=sampling.guidance)
        sampling = replace(sampling, guidance=guidance)
        sampling.levels(model)
        small = y if args.enlarge else small
    if hole is not None:
        return sampling, FilledIn(images, hole)
    return sampling, None if small is None else Enlarged(small)


def _rows(args: Namespace, model: DiffusionModel) -> GivenRows:
    """Read the rows of --data."""
    from ldmprobe.data.columns import CaptionColumn, Column, LabelColumn
    from ldmprobe.inference import given_rows

    columns: list[Column] = [] if args.label_column is None else [LabelColumn(args.label_column)]
    columns += [] if args.caption_column is None else [CaptionColumn(args.caption_column)]
    for column in further_columns(args, model.conditioning):
        if args.hole is None or column.name != model.conditioning.hole_column:
            columns.append(column)
    return given_rows(model, args.data, args.image_column, columns, args.num_samples, args.batch_size)


def _check_writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.unlink()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}. Choose another --out.") from error
