"""The probes that ``ldmprobe probe`` makes of a diffusion model where their option is given; each is an entry of
``FURTHER``, and a further one is a further entry.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ldmprobe.commands.options import integer, option
from ldmprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

    from ldmprobe.inference import RealLatents
    from ldmprobe.io.record import ProbeRecord
    from ldmprobe.probing.real_features import RealFeatures
    from ldmprobe.probing.sampling import Sampling

# The names of the formats, written down since help imports none of them; a test holds that they are all.
FORMATS = ("bf16", "fp16", "fp8", "int8", "compiled")


@dataclass(frozen=True)
class FurtherProbe:
    """A probe that is left out unless it is asked for.

    Attributes:
        option: such as "--likelihood N".
        text: its help.
        of: the images that it takes.
        prepared: what probes a model, with the real latents, how it is sampled and the command's arguments taken in;
            called before any pass of the network, so that what cannot be is refused at once.
        kind: converts the option's text.
        nargs, choices: as argparse has them.
    """

    option: str
    text: str
    of: str
    prepared: Callable[[RealLatents, Sampling, Namespace], Callable[..., ProbeRecord]]
    kind: Callable[[str], object] = str
    nargs: str | None = None
    choices: tuple[str, ...] | None = None

    @property
    def flag(self) -> str:
        return self.option.split()[0]

    @property
    def name(self) -> str:
        return self.flag.removeprefix("--")


def _likelihood(real: RealLatents, sampling: Sampling, args: Namespace) -> Callable[..., ProbeRecord]:
    from ldmprobe.probing.likelihood import probe_likelihood

    return partial(probe_likelihood, held_out=real.held_out.first(args.likelihood), reference=real.reference)


def _memorization(real: RealLatents, sampling: Sampling, args: Namespace) -> Callable[..., ProbeRecord]:
    from ldmprobe.probing.memorization import probe_memorization

    return partial(
        probe_memorization,
        training=real.training(args.memorization),
        held_out=real.held_out.first(args.memorization),
        reference=real.reference,
        num_draws=args.num_draws,
    )


def _precision(real: RealLatents, sampling: Sampling, args: Namespace) -> Callable[..., ProbeRecord]:
    from ldmprobe.probing.precision import FORMATS, probe_precision

    formats = {name: FORMATS[name] for name in args.precision}
    return partial(probe_precision, held_out=real.held_out, formats=formats, num_draws=args.num_draws)


def _relevance(real: RealLatents, sampling: Sampling, args: Namespace) -> Callable[..., ProbeRecord]:
    from ldmprobe.io.digest import weights_fingerprint
    from ldmprobe.probing.relevance import check_alike, probe_relevance
    from ldmprobe.training.checkpoint.load import load_model

    other = load_model(args.relevance, args.device, args.prompt)
    check_alike(real.model, other)
    if len({weights_fingerprint(model.network.parameters()) for model in (real.model, other)}) == 1:
        raise ConfigurationError(
            f"{args.model} and --relevance {args.relevance} have the same weights, so that nothing changes where one "
            "answers for the other; give an earlier checkpoint."
        )
    network, features = real_features(real, sampling, args, "--relevance")
    return partial(
        probe_relevance,
        other=other,
        held_out=real.held_out,
        real=features,
        feature_network=network,
        sampling=sampling.fitted(sampling.levels(real.model, real=True), real.reference.basis),
        num_draws=args.num_draws,
    )


def real_features(
    real: RealLatents, sampling: Sampling, args: Namespace, asking: str
) -> tuple[nn.Module, RealFeatures]:
    """Return the network of --feature-network, and its features of training images.

    Args:
        asking: the option that compares samples.

    Raises:
        ConfigurationError: there is none, or none that takes these images, or there are too few samples.
    """
    from ldmprobe.features.choose import named_network
    from ldmprobe.probing.paired_distance import refuse_too_few_samples
    from ldmprobe.probing.real_features import RealFeatures, check_feature_network

    refuse_too_few_samples(sampling.num_samples)
    data, device = real.data, real.model.device
    network = named_network(args.feature_network, data.image_shape[0])
    if network is None:
        raise ConfigurationError(f"{asking} compares samples by their FID; give a --feature-network.")
    check_feature_network(network, tuple(data.image_shape), device)
    images = (batch["image"] for batch in data.reference_images(args.num_reference, held_out=False))
    return network, RealFeatures.of(network, images, device, f"training images of {data.dataset}")


FURTHER = (
    FurtherProbe(
        "--likelihood N",
        "bits per dimension of N held-out images by the probability flow, some 200 passes",
        "held-out images",
        _likelihood,
        integer(2),
    ),
    FurtherProbe(
        "--memorization N",
        "how far N training images are known by heart: the same noise on them as on held-out ones, twice the passes of "
        "the denoising probe",
        "training images beside held-out ones",
        _memorization,
        integer(8),
    ),
    FurtherProbe(
        "--precision FORMAT",
        f"what copies of the network in fewer bits would lose ({', '.join(FORMATS)}), a denoising probe each",
        "held-out images",
        _precision,
        nargs="+",
        choices=FORMATS,
    ),
    FurtherProbe(
        "--relevance CHECKPOINT",
        "which noise levels matter to the samples: their FID where another model, such as an earlier checkpoint of the "
        "run, answers in one band of them, for each band; the sampling once by each model and once a band",
        "training images beside samples",
        _relevance,
    ),
)


def add_further(parser: argparse.ArgumentParser) -> None:
    """Add the option of each."""
    group = parser.add_argument_group("further probes", "Each takes images of --data, and is left out by default.")
    for probe in FURTHER:
        option(group, probe.option, probe.text, probe.kind, nargs=probe.nargs, choices=probe.choices)


def asked_for(args: Namespace) -> Sequence[FurtherProbe]:
    """Return the probes whose options are given.

    Raises:
        ConfigurationError: there is no --data for them.
    """
    asked = [probe for probe in FURTHER if getattr(args, probe.name)]
    if asked and args.data is None:
        raise ConfigurationError(f"{asked[0].flag} is of {asked[0].of}; give --data.")
    return asked
