"""Power-function averages of a network's trained parameters, kept while it trains."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ldmprobe.analysis.power_averages import decay_at, gamma_of
from ldmprobe.diffusion.full_precision import at_least_float32
from ldmprobe.errors import ConfigurationError
from ldmprobe.training.ema import move_averages
from ldmprobe.types import StateDict


class PowerEMA:
    """θ̄ ← β θ̄ + (1 − β) θ after each optimizer step, β = (1 − 1/t)^(γ + 1), for several lengths at once (Karras et al.,
    2024, arXiv:2312.02696, eq. 4). The first update forgets the weights that training began with. In float32 at least.

    Args:
        network: the live network.
        lengths: σ_rel of each average.

    Attributes:
        updates: how many optimizer steps have been averaged.
        weights: by length, the averages of the trained parameters, by their names in the network.

    Raises:
        ConfigurationError: a length that no such average has.
    """

    def __init__(self, network: nn.Module, lengths: Iterable[float]) -> None:
        self.updates = 0
        self._gammas = {float(f"{length:g}"): gamma_of(float(f"{length:g}")) for length in lengths}
        self.weights: dict[float, dict[str, Tensor]] = {
            length: {
                name: parameter.detach().to(at_least_float32(parameter.dtype), copy=True)
                for name, parameter in _trained(network)
            }
            for length in self._gammas
        }

    def update(self, network: nn.Module) -> None:
        """Take in the weights after an optimizer step of ``network``."""
        self.updates += 1
        live = list(_trained(network))
        for length, averages in self.weights.items():
            pairs = [(averages[name], parameter) for name, parameter in live]
            move_averages(pairs, 1 - decay_at(self.updates, self._gammas[length]))

    def state_dict(self) -> StateDict:
        """Return all of it as tensors and plain values."""
        weights = {f"{length:g}": dict(averages) for length, averages in self.weights.items()}
        return {"updates": self.updates, "weights": weights}

    def load_state_dict(self, state: StateDict) -> None:
        """Go on from ``state``.

        Raises:
            ConfigurationError: it has other lengths.
        """
        theirs, ours = list(state["weights"]), [f"{length:g}" for length in self.weights]
        if sorted(theirs) != sorted(ours):
            raise ConfigurationError(
                f"The checkpoint has averages of length {', '.join(theirs)} and this configuration of "
                f"{', '.join(ours)}: an average cannot begin in the middle of training. Write PostHocEMA's `lengths: "
                f"[{', '.join(theirs)}]`; any other length can be made of these afterwards."
            )
        self.updates = int(state["updates"])
        for length, averages in self.weights.items():
            for name, value in state["weights"][f"{length:g}"].items():
                averages[name].copy_(value)


def _trained(network: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad)
