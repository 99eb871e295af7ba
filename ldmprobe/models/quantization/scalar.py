r"""Finite scalar quantization: each latent channel has a few levels; nothing to learn, nothing that collapses.

Mentzer et al., 2023, arXiv:2309.15505, with a clamp where the paper has a tanh, so that the codes are the nearest ones
of a product grid and a stock VQModel with that grid as its codebook decodes the same:

.. math:: \hat z = \tfrac{2}{L-1} \text{round}\big(\tfrac{L-1}{2} (\operatorname{clamp}(z, -1, 1) + 1)\big) - 1

A product grid has its codes in use only where channels vary independently: of two channels that say the same, the
codes off the diagonal stay empty. A term of their correlations keeps channels apart, as Barlow twins (Zbontar et al.,
2021, arXiv:2103.03230, eq. 1) does with features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.models.quantization.base import Gather, Quantization, Quantized, code_statistics, fix_codes, vectors_of
from ldmprobe.types import Component


class FiniteScalarQuantization(Quantization):
    """Codes on a product grid: ``levels[i]`` evenly spaced ones from −1 to 1 in channel i, both ends among them; 0 is
    one where their number is odd. Straight-through; latents beyond ±1, whose code no longer changes, are pulled back by
    ``pull`` · (|z| − 1)², and ``decorrelation`` · ρ² is added, the mean over pairs of channels of their squared
    correlation over the batch and all places.

    Args:
        levels: of each channel, at least 2; the codebook has their product, c = ``len(levels)`` entries each.
        pull: weight of the term that keeps latents within the grid.
        decorrelation: weight of the term that has channels say different things; 0: none.
    """

    def __init__(self, levels: Sequence[int], pull: float = 0.25, decorrelation: float = 0.1) -> None:
        super().__init__()
        check_numbers("FiniteScalarQuantization", 0, pull=pull, decorrelation=decorrelation)
        if not levels or not all(isinstance(level, int) and level >= 2 for level in levels):
            raise ConfigurationError(
                f"FiniteScalarQuantization got levels {list(levels)}; expected a whole number from 2 for each latent "
                "channel, such as [7, 5, 5, 5]."
            )
        self.levels, self.pull, self.decorrelation = tuple(levels), pull, decorrelation

    @property
    def codes(self) -> Tensor:
        """The grid (K, c)."""
        axes = [torch.linspace(-1, 1, number, dtype=torch.float64) for number in self.levels]
        return torch.cartesian_prod(*axes).view(-1, len(axes)).float()

    def prepare(self, network: Component) -> None:
        fix_codes(network, self.codes, f"FiniteScalarQuantization with levels {list(self.levels)}")

    def forward(self, network: Component, latents: Tensor, gather: Gather) -> Quantized:
        quantized, _, (_, _, codes) = network.quantize(latents)
        beyond = (latents.abs() - 1).clamp(min=0).square().mean()
        loss = self.pull * beyond
        if self.decorrelation and len(self.levels) > 1:
            loss = loss + self.decorrelation * _squared_correlation(vectors_of(latents))
        return Quantized(quantized, loss, code_statistics(codes, network.quantize.n_e))


def _squared_correlation(vectors: Tensor) -> Tensor:
    """Return the mean over pairs of columns (n, c) of their squared correlation; 0 for one that is constant."""
    standard = (vectors - vectors.mean(0)) / vectors.std(0, correction=0).clamp(min=1e-6)
    number = standard.shape[1]
    correlation = standard.T @ standard / len(standard)
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / (number * (number - 1))
