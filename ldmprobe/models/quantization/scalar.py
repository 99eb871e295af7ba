r"""Finite scalar quantization: each latent channel has a few levels; nothing to learn, nothing that collapses.

Mentzer et al., 2023, arXiv:2309.15505, with a clamp where the paper has a tanh, so that the codes are the nearest ones
of a product grid and a stock VQModel with that grid as its codebook decodes the same:

.. math:: \hat z = \tfrac{2}{L-1} \text{round}\big(\tfrac{L-1}{2} (\operatorname{clamp}(z, -1, 1) + 1)\big) - 1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.models.quantization.base import Quantization, Quantized, code_statistics, fix_codes
from ldmprobe.types import Component


class FiniteScalarQuantization(Quantization):
    """Codes on a product grid: ``levels[i]`` evenly spaced ones from −1 to 1 in channel i, both ends among them; 0 is
    one where their number is odd. Straight-through; latents beyond ±1, whose code no longer changes, are pulled back by
    ``pull`` · (|z| − 1)².

    Args:
        levels: of each channel, at least 2; the codebook has their product, c = ``len(levels)`` entries each.
        pull: weight of the term that keeps latents within the grid.
    """

    def __init__(self, levels: Sequence[int], pull: float = 0.25) -> None:
        super().__init__()
        check_numbers("FiniteScalarQuantization", 0, pull=pull)
        if not levels or not all(isinstance(level, int) and level >= 2 for level in levels):
            raise ConfigurationError(
                f"FiniteScalarQuantization got levels {list(levels)}; expected a whole number from 2 for each latent "
                "channel, such as [7, 5, 5, 5]."
            )
        self.levels, self.pull = tuple(levels), pull

    @property
    def codes(self) -> Tensor:
        """The grid (K, c)."""
        axes = [torch.linspace(-1, 1, number, dtype=torch.float64) for number in self.levels]
        return torch.cartesian_prod(*axes).view(-1, len(axes)).float()

    def prepare(self, network: Component) -> None:
        fix_codes(network, self.codes, f"FiniteScalarQuantization with levels {list(self.levels)}")

    def forward(self, network: Component, latents: Tensor) -> Quantized:
        quantized, _, (_, _, codes) = network.quantize(latents)
        beyond = (latents.abs() - 1).clamp(min=0).square().mean()
        return Quantized(quantized, self.pull * beyond, code_statistics(codes, network.quantize.n_e))
