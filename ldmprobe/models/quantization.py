"""Quantizations: how the latents of a VQModel are snapped to codes while it is trained.

Whatever is trained is a stock VQModel of diffusers at every moment: its ``quantize.embedding.weight`` (K, c) holds the
codes, and its decoder takes the nearest one. A quantization decides what moves the codes and what draws latents to
them:

1. ``prepare(network)`` before training: settings of the VQModel, and codes that are known beforehand.
2. ``begin(…)`` once, with the latents of the first batch: codes that start from data.
3. ``quantization(network, latents)`` in every step.
4. ``after_step(…)`` after every optimizer step: codes that move by averages, or are revived.

State that has to survive a resume is in buffers. Random draws come from the ``generator`` that is passed, seeded by the
batch's number and the same on every rank; ``gather`` joins what all ranks have, so that codes stay equal on all of
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldmprobe.errors import check_numbers
from ldmprobe.types import Component

Gather = Callable[[Tensor], Tensor]
"""(n, …) on each rank → (ranks·n, …), the same on every rank."""


class Quantized(NamedTuple):
    """What a quantization makes of latents.

    Attributes:
        latents: (N, c, h, w), codes in the forward pass, and the latents' gradients in the backward pass.
        loss: a term of the loss, a mean over entries, with its weights in it.
        statistics: further numbers to log, by name.
    """

    latents: Tensor
    loss: Tensor
    statistics: dict[str, Tensor]


class Quantization(nn.Module, ABC):
    """What moves the codes of a VQModel, and what draws its latents to them.

    Attributes:
        begun: whether ``begin`` has been called; a buffer.
    """

    begun: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("begun", torch.tensor(False))

    @abstractmethod
    def prepare(self, network: Component) -> None:
        """Set up a VQModel for training.

        Raises:
            ConfigurationError: its codebook has another shape than this quantization's.
        """

    def begin(self, codebooks: list[nn.Parameter], latents: Tensor, gather: Gather, generator: torch.Generator) -> None:
        """Start the codes from the latents (N, c, h, w) of the first batch.

        Args:
            codebooks: (K, c), that of the network in training and, if there is one, that of its moving average.
        """

    @abstractmethod
    def forward(self, network: Component, latents: Tensor) -> Quantized:
        """Quantize latents (N, c, h, w) as the network's decoder will."""

    def after_step(self, codebooks: list[nn.Parameter], gather: Gather, generator: torch.Generator) -> None:
        """Move codes after an optimizer step, by what the passes since the last one have seen."""


class VectorQuantization(Quantization):
    """Codes trained by gradient (van den Oord et al., 2017, arXiv:1711.00937, eq. 3; VQGAN: arXiv:2012.09841, eq. 4):
    loss ‖sg[z] − e‖² + β ‖z − sg[e]‖², straight-through.

    Args:
        commitment: β.
    """

    def __init__(self, commitment: float = 0.25) -> None:
        super().__init__()
        check_numbers("VectorQuantization", 0, commitment=commitment)
        self.commitment = commitment

    def prepare(self, network: Component) -> None:
        # By default diffusers has β on the codebook's term instead.
        network.quantize.legacy, network.quantize.beta = False, self.commitment

    def forward(self, network: Component, latents: Tensor) -> Quantized:
        quantized, loss, (_, _, codes) = network.quantize(latents)
        used = torch.bincount(codes.flatten(), minlength=network.quantize.n_e) / codes.numel()
        statistics = {"codes_used": (used > 0).float().mean(), "perplexity": torch.special.entr(used).sum().exp()}
        return Quantized(quantized, loss, statistics)
