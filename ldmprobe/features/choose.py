"""Which feature network is meant: by name, the module itself, or what goes with images of so many channels."""

from __future__ import annotations

from torch import nn

from ldmprobe.features.classifier import FeatureNetwork
from ldmprobe.features.inception import Inception


def chosen_network(chosen: str | nn.Module) -> nn.Module:
    """Return a module as it is, "inception", or the FeatureNetwork of any other name.

    Raises:
        ConfigurationError: nothing loadable there.
    """
    if isinstance(chosen, nn.Module):
        return chosen
    return Inception() if chosen == "inception" else FeatureNetwork(chosen)


def named_network(name: str | None, channels: int) -> nn.Module | None:
    """Return the network of this name; by default that for gray or RGB images, "builtin:digits" or "builtin:cifar10";
    None for "none", and where there is no default.

    Raises:
        ConfigurationError: nothing loadable there.
    """
    chosen = name or {1: "builtin:digits", 3: "builtin:cifar10"}.get(channels, "none")
    return None if chosen == "none" else chosen_network(chosen)
