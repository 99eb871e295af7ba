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
    from ldmprobe.inference import RealLatents
    from ldmprobe.io.record import ProbeRecord

# The names of the formats, written down since help imports none of them; a test holds that they are all.
FORMATS = ("bf16", "fp16", "fp8", "int8", "compiled")


@dataclass(frozen=True)
class FurtherProbe:
    """A probe that is left out unless it is asked for.

    Attributes:
        option: such as "--likelihood N".
        text: its help.
        of: the images that it takes.
        prepared: what probes a model, with the real latents and the command's arguments taken in; called before any
            pass of the network, so that what cannot be is refused at once.
        kind: converts the option's text.
        nargs, choices: as argparse has them.
    """

    option: str
    text: str
    of: str
    prepared: Callable[[RealLatents, Namespace], Callable[..., ProbeRecord]]
    kind: Callable[[str], object] = str
    nargs: str | None = None
    choices: tuple[str, ...] | None = None

    @property
    def flag(self) -> str:
        return self.option.split()[0]

    @property
    def name(self) -> str:
        return self.flag.removeprefix("--")


def _likelihood(real: RealLatents, args: Namespace) -> Callable[..., ProbeRecord]:
    from ldmprobe.probing.likelihood import probe_likelihood

    return partial(probe_likelihood, held_out=real.held_out.first(args.likelihood), reference=real.reference)


def _memorization(real: RealLatents, args: Namespace) -> Callable[..., ProbeRecord]:
    from ldmprobe.probing.memorization import probe_memorization

    return partial(
        probe_memorization,
        training=real.training(args.memorization),
        held_out=real.held_out.first(args.memorization),
        reference=real.reference,
        num_draws=args.num_draws,
    )


def _precision(real: RealLatents, args: Namespace) -> Callable[..., ProbeRecord]:
    from ldmprobe.probing.precision import FORMATS, probe_precision

    formats = {name: FORMATS[name] for name in args.precision}
    return partial(probe_precision, held_out=real.held_out, formats=formats, num_draws=args.num_draws)


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
