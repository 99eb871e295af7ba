"""Options that several commands share, defined once, and the parser that all commands use."""

from __future__ import annotations

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, NoReturn

from ldmprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from ldmprobe.models.diffusion_model import DiffusionModel
    from ldmprobe.probing.sampling import Sampling

MODEL = "a LatentDiffusion checkpoint (.ckpt), or a diffusers pipeline (folder or hub id)"


class Parser(ArgumentParser):
    """A command's parser. Mistakes are ConfigurationErrors, told in one line like all others."""

    def __init__(self, command: str, usage: str, description: str, example: str) -> None:
        super().__init__(
            f"ldmprobe {command}".strip(),
            usage=f"ldmprobe {command} {usage}".replace("  ", " "),
            description=description,
            epilog=f"example: ldmprobe {command} {example}".replace("  ", " "),
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}. `{self.prog} --help` lists all options.")


def integer(at_least: int, at_most: float = inf) -> Callable[[str], int]:
    """Return a converter of an option's text to an integer within bounds."""

    def integer(text: str) -> int:
        if not at_least <= int(text) <= at_most:
            bounds = f"at least {at_least}" if at_most == inf else f"{at_least} to {at_most:,}"
            raise argparse.ArgumentTypeError(f"got {text}, expected {bounds}")
        return int(text)

    return integer


def add_base(options: argparse._ActionsContainer) -> None:
    """Add where the pretrained model of a finetune's checkpoint is."""
    options.add_argument(
        "--base", metavar="MODEL", help="where a finetune's pretrained model is, if it is not where the checkpoint says"
    )


def add_model(parser: ArgumentParser) -> None:
    """Add which model is loaded, how, and where to."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    group = parser.add_argument_group("model")
    add_base(group)
    group.add_argument("--revision", help="branch, tag or commit of a pipeline on the hub")
    group.add_argument("--variant", help='variant of a pipeline\'s weights, such as "fp16"')
    group.add_argument(
        "--text-precision",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="precision of a pipeline's text encoders (default: %(default)s)",
    )
    group.add_argument("--local-files-only", action="store_true", help="use the hub's local cache and never connect")
    group.add_argument("--device", help='such as "cuda" or "cuda:1" (default: cuda if there is one, else cpu)')


def add_sampling(parser: ArgumentParser, num_samples: int) -> None:
    """Add how the model is sampled."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--num-samples",
        type=integer(1, 10_000_000),
        default=num_samples,
        metavar="N",
        help="number of samples (default: %(default)s)",
    )
    group.add_argument(
        "--num-steps", type=int, default=50, metavar="N", help="number of DDIM steps (default: %(default)s)"
    )
    group.add_argument(
        "--timestep-spacing",
        choices=["leading", "trailing", "linspace"],
        help="which timesteps are visited (default: the scheduler's choice)",
    )
    group.add_argument(
        "--prompt", nargs="+", metavar="TEXT", help="prompts, cycled over the samples (text-to-image only)"
    )
    group.add_argument(
        "--guidance-scale",
        type=float,
        default=1.0,
        metavar="W",
        help="scale of classifier-free guidance; 1 is none (default: 1)",
    )
    group.add_argument(
        "--batch-size",
        type=integer(1),
        default=64,
        metavar="N",
        help="latents through the network at once (default: %(default)s)",
    )
    group.add_argument(
        "--seed", type=integer(0), default=0, metavar="N", help="seed of the starting noise (default: %(default)s)"
    )


def load(args: Namespace) -> tuple[DiffusionModel, Sampling]:
    """Return the model and the sampling that ``add_model`` and ``add_sampling`` asked for, both checked."""
    import torch

    from ldmprobe.diffusion.grids import ScheduleGrid
    from ldmprobe.models.denoiser import check_denoiser
    from ldmprobe.models.guidance import ClassifierFreeGuidance
    from ldmprobe.pretrained.source import Source
    from ldmprobe.probing.probe import evaluating
    from ldmprobe.probing.sampling import Sampling
    from ldmprobe.training.checkpoint.load import load_model

    source = Source(args.model, args.revision, args.variant, args.local_files_only, args.text_precision, args.base)
    model = load_model(source, args.device, args.prompt)
    with evaluating(model.modules):
        condition = model.conditioning.for_samples(torch.zeros(1, dtype=torch.long, device=model.device))
        image_shape = model.codec.image_shape(model.latent_shape)
        check_denoiser(model.network, model.latent_shape, condition, model.device, image_shape)
    sampling = Sampling(
        args.num_samples,
        args.num_steps,
        grid=ScheduleGrid(args.timestep_spacing),
        guidance=ClassifierFreeGuidance(args.guidance_scale),
        batch_size=args.batch_size,
        seed=args.seed,
    )
    sampling.levels(model)
    return model, sampling


@contextmanager
def settings_as_options(args: Namespace) -> Iterator[None]:
    """Rewrite error messages: what shared code calls `label_column` is the option --label-column here."""
    try:
        yield
    except ConfigurationError as error:
        settings = "|".join(vars(args))
        message = re.sub(rf"(the data's )?`({settings})`", lambda found: f"--{found[2].replace('_', '-')}", str(error))
        raise ConfigurationError(message) from error
