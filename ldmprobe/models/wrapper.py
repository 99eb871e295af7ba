"""NetworkWrapper: what stands between a network and a process that the network is not told in the usual way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from ldmprobe.diffusion.prediction import KINDS
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.weighting import LossWeighting
from ldmprobe.errors import ConfigurationError, check_positive
from ldmprobe.models.library import own_class_named
from ldmprobe.types import PlainValues

Condition = dict[str, Tensor]
"""What a network is told of each sample, by name, each of shape (N, …): ``{}``, ``{"class_labels": …}``,
``{"encoder_hidden_states": …}``.

``"concat"`` (N, C', H, W) is a picture beside z_t: it is joined to the latents along channels, after them, before any
network.
"""


def config_of(network: object) -> PlainValues:
    """Return the configuration of a network of diffusers; an empty one for any other network."""
    config = getattr(network, "config", None)
    return config if isinstance(config, FrozenDict) else {}


def is_of_diffusers(network: object) -> bool:
    """Return whether a network, compiled or not, is called as those of diffusers are: its ``config`` is of theirs."""
    return isinstance(config_of(network), FrozenDict)


class NetworkWrapper(nn.Module, ABC):
    """A module around a network, of diffusers or of one's own, that is told σ by a process with α = 1. Its own
    arithmetic is in float32 at least, whatever the network's precision.

    Attributes:
        answers: the kind of its answers, a name in ``ldmprobe.diffusion.prediction``.
        network: the network in it.
        settings: its other arguments, plain values above 0.
    """

    answers: ClassVar[str]

    def __init__(self, network: nn.Module, **settings: float) -> None:
        super().__init__()
        if isinstance(network, NetworkWrapper):
            raise ConfigurationError(
                f"{type(self).__name__} got a network that is in {type(network).__name__} already; give it the network "
                "itself."
            )
        check_positive(type(self).__name__, **settings)
        self.network, self.settings = network, settings

    @property
    def config(self) -> PlainValues:
        """The configuration of the network in it, for those who ask which latents and conditions it takes."""
        return config_of(self.network)

    @property
    def description(self) -> PlainValues:
        """Class and settings as plain values, without the network."""
        return {"class_name": type(self).__name__, **self.settings}

    @abstractmethod
    def forward(self, z_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the answer at z_t (N, C, H, W), told σ (N,)."""


def wrapper_of(network: nn.Module) -> NetworkWrapper | None:
    """Return a network that is a wrapper; None for any other."""
    return network if isinstance(network, NetworkWrapper) else None


def innermost(network: nn.Module) -> nn.Module:
    """Return the network itself, out of any wrapper."""
    return network.network if isinstance(network, NetworkWrapper) else network


def wrapped(network: nn.Module, wrapper: PlainValues | None) -> nn.Module:
    """Return ``network`` in the wrapper of this class and settings; None is none.

    Raises:
        ConfigurationError: there is no such wrapper.
    """
    if wrapper is None:
        return network
    settings = dict(wrapper)
    name = settings.pop("class_name")
    kind = own_class_named(NetworkWrapper, name, "its network in the wrapper")  # type: ignore[type-abstract]
    return kind(network, **settings)


def check_schedule(network: nn.Module, schedule: NoiseSchedule) -> None:
    """Compare what a network is told and answers with what its noise schedule says.

    Raises:
        ConfigurationError: a wrapper that is told σ with a schedule that tells something else, or of another kind of
            answers; or, without a wrapper, a network of diffusers that would be told σ, or a scheduler of diffusers
            whose networks have to be in one.
    """
    wrapper, needed = wrapper_of(network), schedule.network_wrapper
    name, answers = type(network).__name__, schedule.prediction.name
    told_sigma = torch.equal(schedule.model_time.float(), schedule.sigma.float())
    told_sigma = told_sigma and bool((schedule.alpha == 1).all())
    if wrapper is not None:
        if not told_sigma:
            raise ConfigurationError(
                f"{name} is told σ of a process with α = 1, and the {schedule.name} tells something else; use VESDE "
                "or EDMProcess."
            )
        if answers != wrapper.answers:
            raise ConfigurationError(
                f"{name} answers {wrapper.answers}, and the {schedule.name} has prediction {answers}; give it "
                f"`prediction: {{class_path: {type(KINDS[wrapper.answers]).__name__}}}`."
            )
    elif told_sigma and needed is None and is_of_diffusers(network):
        raise ConfigurationError(
            f"The {schedule.name} tells {name} σ in the place of a timestep, and shows it latents of scale up to "
            f"{float(schedule.sigma[-1]):g}, neither of which it is made for; write `network: {{class_path: "
            f"{'Preconditioned' if answers == 'sample' else 'EpsilonNetwork'}, init_args: {{network: …}}}}`."
        )
    if needed is not None and needed != (wrapper and wrapper.description):
        settings = ", ".join(f"{name}: {value}" for name, value in needed.items() if name != "class_name")
        raise ConfigurationError(
            f"{schedule.name} has its network in ldmprobe's {needed['class_name']}; write `network: {{class_path: "
            f"{needed['class_name']}, init_args: {{network: …{', ' if settings else ''}{settings}}}}}`."
        )


def check_weighting(network: nn.Module, weighting: LossWeighting) -> None:
    """Compare the standard deviation of the data that a network's wrapper is for with that of a loss weighting.

    Raises:
        ConfigurationError: they differ.
    """
    wrapper, wanted = wrapper_of(network), weighting.sigma_data
    own = None if wrapper is None else wrapper.settings.get("sigma_data")
    if own is not None and wanted is not None and own != wanted:
        raise ConfigurationError(
            f"{type(weighting).__name__} has sigma_data {wanted:g}, and {type(wrapper).__name__} has {own:g}; expected "
            f"one standard deviation of the data: write `sigma_data: {own:g}` for the weights of `EDM`, too."
        )
