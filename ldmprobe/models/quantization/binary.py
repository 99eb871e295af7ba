r"""Binary quantization: the sign of each latent channel; a code is a corner of the cube, K = 2^c of them.

What keeps all of them in use is a term of entropies (Yu et al., 2023, arXiv:2310.05737, eq. 5):

.. math:: \mathbb E_z H(q(\cdot | z)) - \gamma H(\mathbb E_z q(\cdot | z)),
    \qquad q(e | z) \propto \exp(-\tau |z - e|^2)

Bits are independent given z, so that the first is a sum over channels; the second is bounded by such a sum, as Zhao et
al., 2024, arXiv:2406.07548, eq. 8, have it, which 2^c codes do not make dear.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import product

import torch
from torch import Tensor

from ldmprobe.errors import check_numbers
from ldmprobe.models.quantization.base import Gather, Quantization, Quantized, code_statistics, fix_codes, vectors_of
from ldmprobe.types import Component


class BinaryQuantization(Quantization, ABC):
    """Signs of latents, and a term of entropies.

    Attributes:
        bits: c, channels of the latents.
    """

    def __init__(
        self,
        bits: int,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        sharpness: float = 1.0,
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_numbers(name, 1, 18, bits=bits)
        check_numbers(
            name, 0, entropy_weight=entropy_weight, diversity=diversity, sharpness=sharpness, commitment=commitment
        )
        self.bits, self.entropy_weight, self.diversity = bits, entropy_weight, diversity
        self.sharpness, self.commitment = sharpness, commitment

    @property
    @abstractmethod
    def length(self) -> float:
        """Return what each entry of a code is, up to its sign."""

    @abstractmethod
    def relaxed(self, latents: Tensor) -> Tensor:
        """Return what codes stand for and whose gradients latents have, of latents (N, c, h, w)."""

    @property
    def codes(self) -> Tensor:
        """The corners (K, c)."""
        return self.length * torch.tensor(list(product((-1.0, 1.0), repeat=self.bits)))

    def prepare(self, network: Component) -> None:
        fix_codes(network, self.codes, f"{type(self).__name__} with {self.bits} bits")

    def forward(self, network: Component, latents: Tensor, gather: Gather) -> Quantized:
        quantized, _, (_, _, codes) = network.quantize(latents)
        u = self.relaxed(latents)
        # Of q(±length | u) for each bit: ln q(+)/q(−) = 4 τ · length · u.
        logits = 4 * self.sharpness * self.length * vectors_of(u)
        both = torch.sigmoid(torch.stack([logits, -logits]))
        certain, diverse = _entropy(both).sum(1).mean(), _entropy(both.mean(1)).sum()
        pull = (u - quantized.detach()).square().mean()
        loss = self.entropy_weight * (certain - self.diversity * diverse) / self.bits + self.commitment * pull
        # The value is the network's own to the last bit; the gradient is that of u.
        straight_through = quantized.detach() + (u - u.detach())
        return Quantized(straight_through, loss, code_statistics(codes, network.quantize.n_e))


class LookupFreeQuantization(BinaryQuantization):
    """Codes ±1 in each channel (LFQ: MAGVIT-v2, arXiv:2310.05737, section 3.1), straight-through.

    Args:
        bits: channels of the latents; the codebook has 2^bits codes.
        entropy_weight: of the term of entropies, per bit.
        diversity: γ, weight of the entropy of the mean within it.
        sharpness: τ.
        commitment: weight of (z − e)².
    """

    @property
    def length(self) -> float:
        return 1.0

    def relaxed(self, latents: Tensor) -> Tensor:
        return latents


class BinarySphericalQuantization(BinaryQuantization):
    """Codes ±1/√c in each channel, for latents on the unit sphere (BSQ: arXiv:2406.07548, section 4.1), straight-
    through. Its error is bounded, and needs no commitment.

    Args:
        bits: channels of the latents; the codebook has 2^bits codes.
        entropy_weight: of the term of entropies, per bit.
        diversity: γ, weight of the entropy of the mean within it.
        sharpness: τ.
    """

    def __init__(self, bits: int, entropy_weight: float = 0.1, diversity: float = 1.0, sharpness: float = 10.0) -> None:
        super().__init__(bits, entropy_weight, diversity, sharpness, commitment=0.0)

    @property
    def length(self) -> float:
        return self.bits**-0.5

    def relaxed(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.normalize(latents, dim=1)


def _entropy(both: Tensor) -> Tensor:
    """Return the entropy of bits in nats, by the probabilities (2, …) of both values of each: 1 − p would be rounded to
    0, where the gradient is infinite.
    """
    return torch.special.entr(both.clamp(min=torch.finfo(both.dtype).tiny)).sum(0)
