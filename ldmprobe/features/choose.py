"""Which feature network is meant: by name, or the module itself."""

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
