"""Options that several commands share, defined once, and the parser that all commands use."""

from __future__ import annotations

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import TYPE_CHECKING, NoReturn

from ldmprobe.commands.settings import made_with, setting
from ldmprobe.errors import ConfigurationError, closest

if TYPE_CHECKING:
    from ldmprobe.data.columns import Column
    from ldmprobe.models.conditioning import Conditioning
    from ldmprobe.models.diffusion_model import DiffusionModel
    from ldmprobe.pretrained.source import Source
    from ldmprobe.probing.sampling import Sampling

PRECISIONS = ("float32", "bfloat16", "float16")

# The names of the classes, written down since help imports none of them; a test holds that they are all.
SAMPLERS = (
    *("ddim", "ddpm", "ddpm-large", "euler", "euler-ancestral", "euler-maruyama", "heun"),
    *("dpmpp-2m", "dpmpp-3m", "dpmpp-2m-sde", "unipc", "predictor-corrector", "annealed-langevin", "resampling"),
    "scaled-epsilon",
)
GRIDS = ("schedule", "log-snr", "karras", "edm", "shift", "measured")


class Parser(ArgumentParser):
    """A command's parser. Mistakes are ConfigurationErrors, told in one line like all others."""

    def __init__(self, command: str, usage: str, description: str, example: str) -> None:
        name = f"ldmprobe {command}".strip()
        super().__init__(
            name,
            usage=f"{name} {usage}",
            description=description,
            epilog=f"example: {name} {example}",
            allow_abbrev=False,
        )

    @property
    def options(self) -> list[str]:
        """Return the names of all options."""
        return [*self._option_string_actions]

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"invalid choice: '(.+?)'|unrecognized arguments: (\S+)", message)
        known = [*self.options, *(name for action in self._actions for name in action.choices or ())]
        near = closest(unknown[1] or unknown[2], known) if unknown else ""
        raise ConfigurationError(f"{message}.{near} `{self.prog} --help` lists all options.")


def option(
    parser: argparse._ActionsContainer,
    flag: str,
    text: str,
    kind: Callable[[str], object] = str,
    default: object = None,
    nargs: str | None = None,
    choices: tuple[str, ...] | None = None,
) -> None:
    """Add an option such as "--seed N"; the help ends with its default, where there is one."""
    name, _, metavar = flag.partition(" ")
    text += " (default: %(default)s)" if default is not None else ""
    parser.add_argument(
        name, metavar=metavar or None, help=text, type=kind, default=default, nargs=nargs, choices=choices
    )


def integer(at_least: int, at_most: float = inf) -> Callable[[str], int]:
    """Return a converter of an option's text to an integer within bounds."""

    def integer(text: str) -> int:
        if not at_least <= int(text) <= at_most:
            bounds = f"at least {at_least}" if at_most == inf else f"{at_least} to {at_most:,}"
            raise argparse.ArgumentTypeError(f"got {text}, expected {bounds}")
        return int(text)

    return integer


def add_base(parser: argparse._ActionsContainer) -> None:
    """Add where the pretrained model of a finetune's checkpoint is."""
    option(parser, "--base MODEL", "where a finetune's pretrained model is, if not where the checkpoint says")


def add_weights(parser: argparse._ActionsContainer, several: str = "") -> None:
    """Add which average of a checkpoint's weights is taken, and how much of its LoRA.

    Args:
        several: what is done with several averages; without it there can be but one.
    """
    option(
        parser,
        "--ema-length SIGMA_REL",
        f"length of an average of the weights, 0.03 to 0.25, of a run with PostHocEMA{several} (default: as trained)",
        float,
        nargs="+" if several else None,
    )
    option(parser, "--lora-strength S", "how much of a LoRA is added; 1 is as trained", float, 1.0)


def add_model(parser: ArgumentParser) -> None:
    """Add which model is loaded, how, and where to."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint (.ckpt), or diffusers pipeline (folder or hub id)")
    group = parser.add_argument_group("model")
    add_base(group)
    option(group, "--revision NAME", "branch, tag or commit of a pipeline on the hub")
    option(group, "--variant NAME", 'variant of a pipeline\'s weights, such as "fp16"')
    option(group, "--text-precision", "precision of a pipeline's text encoders", default="float32", choices=PRECISIONS)
    group.add_argument("--local-files-only", action="store_true", help="use the hub's local cache and never connect")
    option(group, "--device NAME", 'such as "cuda" or "cuda:1" (default: cuda if there is one, else cpu)')


def add_sampling(parser: ArgumentParser, num_samples: int) -> None:
    """Add how the model is sampled."""
    group = parser.add_argument_group("sampling")
    spacings = ("leading", "trailing", "linspace")
    option(group, "--num-samples N", "number of samples", integer(1, 10_000_000), num_samples)
    option(group, "--num-steps N", "number of sampling steps", int, 50)
    option(group, "--sampler", "how a step is taken", _sampler, "ddim", choices=SAMPLERS)
    option(group, "--sampler-settings NAME=VALUE", "settings of --sampler, such as eta=1", setting, nargs="+")
    option(group, "--grid", "which noise levels are visited", default="schedule", choices=GRIDS)
    option(group, "--grid-settings NAME=VALUE", "settings of --grid, such as rho=5", setting, nargs="+")
    option(group, "--timestep-spacing", "of --grid schedule (default: the scheduler's)", choices=spacings)
    option(group, "--prompt TEXT", "prompts, cycled over the samples (text-to-image only)", nargs="+")
    option(group, "--guidance-scale W", "scale of classifier-free guidance; 1 is none", float, 1.0)
    group.add_argument(
        "--guidance-interval",
        metavar=("LOW", "HIGH"),
        nargs=2,
        type=float,
        help="log-SNRs between which there is guidance (default: everywhere)",
    )
    option(group, "--classifier FILE", "classifier of noisy latents that guides samples, of each class in turn")
    option(group, "--classifier-scale S", "scale of its guidance; 1 is Bayes' rule", float)
    option(group, "--batch-size N", "latents through the network at once", integer(1), 64)
    option(group, "--seed N", "seed of the starting noise", integer(0), 0)


def add_data(group: argparse._ActionsContainer) -> None:
    """Add which dataset is read, and which of its columns."""
    option(group, "--data DATASET", "folder, parquet file or hub id of images, or builtin:digits")
    option(group, "--image-column NAME", "name of the image column", default="image")
    option(group, "--label-column NAME", "name of the label column (class-conditional models)")
    option(
        group, "--caption-column NAME", "name of the caption column (text-to-image models; default: the one --prompt)"
    )
    option(
        group,
        "--column NAME=COLUMN",
        "the column of what else the model is told, such as map=segmentation, or hole=mask for what is to be filled in "
        "(default: of the same name)",
        _renaming,
        nargs="+",
    )


def _renaming(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=COLUMN, such as map=segmentation")
    return name, column


def further_columns(args: Namespace, conditioning: Conditioning) -> list[Column]:
    """Return the columns that a model reads beside images, labels and captions, as ``add_data`` asked for them.

    Raises:
        ConfigurationError: --column names what the model does not read.
    """
    import ldmprobe.data.annotations  # noqa: F401 (so that its kinds are known by name)
    from ldmprobe.data.columns import Column
    from ldmprobe.types import kinds_of

    kinds, given = conditioning.column_kinds, dict(args.column or ())
    for name in given:
        if name not in kinds:
            reads = f"it reads {', '.join(kinds)}" if kinds else "it reads no further columns"
            raise ConfigurationError(f"--column names {name!r}, of which the model is told nothing; {reads}.")
    by_name = {kind.__name__: kind for kind in kinds_of(Column)}  # type: ignore[type-abstract]
    asked = [name for name in kinds if name in conditioning.columns or name in given]
    return [by_name[kinds[name]](given.get(name, name), name) for name in asked]


def _sampler(name: str) -> str:
    if name == "lcm":
        raise argparse.ArgumentTypeError(
            "lcm is for networks that were distilled for consistency, and ends far from the data with any other; take "
            "dpmpp-2m or unipc with --grid log-snr"
        )
    return name


def source_of(args: Namespace) -> Source:
    """Return where the model is that ``add_model`` asked for, and which of its averages."""
    from ldmprobe.pretrained.source import Source

    how = (args.revision, args.variant, args.local_files_only, args.text_precision, args.base)
    return Source(args.model, *how, args.ema_length, args.lora_strength)


def load(args: Namespace, real: bool = False) -> tuple[DiffusionModel, Sampling]:
    """Return the model and the sampling that ``add_model`` and ``add_sampling`` asked for, both checked.

    Args:
        real: whether there will be real latents, for a sampler with settings that are found from them.
    """
    import torch

    import ldmprobe.diffusion.measured_grid  # noqa: F401 (so that its grid is known by name)
    from ldmprobe.diffusion.grids import Grid, ScheduleGrid
    from ldmprobe.diffusion.named import by_name
    from ldmprobe.diffusion.samplers import Sampler
    from ldmprobe.models.denoiser import check_denoiser
    from ldmprobe.models.guidance import ClassifierGuidance, IntervalGuidance, as_guidance
    from ldmprobe.probing.probe import evaluating
    from ldmprobe.probing.sampling import Sampling
    from ldmprobe.training.checkpoint.load import load_model

    if args.timestep_spacing and args.grid != "schedule":
        raise ConfigurationError(
            f"--timestep-spacing is {args.timestep_spacing} and --grid {args.grid}; a spacing of timesteps is that of "
            "--grid schedule alone. Leave one of the two out."
        )
    model = load_model(source_of(args), args.device, args.prompt)
    if not model.conditioning.ready and args.data is None:
        raise ConfigurationError(
            f"{args.model} is told rows of data ({model.conditioning.label}), and has none of its own; give --data."
        )
    if model.conditioning.ready:
        with evaluating(model.modules):
            condition = model.conditioning.for_samples(torch.zeros(1, dtype=torch.long, device=model.device))
            image_shape = model.codec.image_shape(model.latent_shape)
            check_denoiser(model.network, model.latent_shape, condition, model.device, image_shape)
    samplers, grids = by_name(Sampler), by_name(Grid)  # type: ignore[type-abstract]
    sampler = made_with(samplers[args.sampler], args.sampler_settings or (), "--sampler")
    kind = partial(ScheduleGrid, args.timestep_spacing) if args.grid == "schedule" else grids[args.grid]
    grid = made_with(kind, args.grid_settings or (), "--grid")
    guidance = as_guidance(args.guidance_scale)
    if args.classifier_scale is not None and not args.classifier:
        raise ConfigurationError("--classifier-scale is of a classifier's guidance; give --classifier.")
    if args.classifier:
        scale = 1.0 if args.classifier_scale is None else args.classifier_scale
        guidance = ClassifierGuidance(args.classifier, scale, guidance=guidance)
    if args.guidance_interval:
        if not guidance.shifts:
            raise ConfigurationError("--guidance-interval says where there is guidance; give --guidance-scale, too.")
        guidance = IntervalGuidance(guidance, *args.guidance_interval)
    sampling = Sampling.of(args.num_samples, args.num_steps, sampler, grid, guidance, args.batch_size, args.seed)
    if model.conditioning.ready:
        sampling.levels(model, real)
    return model, sampling


@contextmanager
def settings_as_options(args: Namespace) -> Iterator[None]:
    """Rewrite error messages: what shared code calls `label_column` is the option --label-column here."""
    try:
        yield
    except ConfigurationError as error:
        settings = rf"(the data's )?`({'|'.join(vars(args))})`"
        told = re.sub(settings, lambda found: f"--{found[2].replace('_', '-')}", str(error))
        raise ConfigurationError(told) from error
