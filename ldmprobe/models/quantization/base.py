"""Quantization: what moves the codes of a VQModel in training, and what draws its latents to them.

Whatever is trained is a stock VQModel of diffusers at every moment: its ``quantize.embedding.weight`` (K, c) holds the
codes, and its decoder takes the nearest one. A quantization is asked four times:

1. ``prepare(network)`` before training: settings of the VQModel, and codes that are known beforehand.
2. ``begin(…)`` once, with the latents of the first batch: codes that start from data.
3. ``quantization(network, latents, gather)`` for every batch.
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

from ldmprobe.errors import ConfigurationError
from ldmprobe.types import Component

Gather = Callable[[Tensor], Tensor]
"""(n, …) on each rank → (ranks·n, …), the same on every rank."""


class Quantized(NamedTuple):
    """The result of quantizing latents.

    Attributes:
        latents: (N, c, h, w), codes in the forward pass, and the latents' gradients in the backward pass.
        loss: a term of the loss, a mean over entries, with its weights in it.
        statistics: further numbers to log, by name.
    """

    latents: Tensor
    loss: Tensor
    statistics: dict[str, Tensor]


class Quantization(nn.Module, ABC):
    """The rule that moves the codes of a VQModel, and draws its latents to them.

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
    def forward(self, network: Component, latents: Tensor, gather: Gather) -> Quantized:
        """Quantize latents (N, c, h, w) as the network's decoder will."""

    def after_step(self, codebooks: list[nn.Parameter], gather: Gather, generator: torch.Generator) -> None:
        """Move codes after an optimizer step, by what the passes since the last one have seen."""


def vectors_of(latents: Tensor) -> Tensor:
    """Return latents (N, c, h, w) as vectors (N·h·w, c), one for each place."""
    return latents.movedim(1, -1).flatten(0, -2)


def nearest_codes(network: Component, latents: Tensor) -> Tensor:
    """Return the numbers (N, h, w) of the codes that the decoder takes for latents (N, c, h, w)."""
    numbers: Tensor = network.quantize(latents)[2][2]
    return numbers.view(len(latents), *latents.shape[2:])


def code_statistics(codes: Tensor, number: int) -> dict[str, Tensor]:
    """Return the share of ``number`` codes that are among ``codes`` (any shape), and their perplexity exp H."""
    used = torch.bincount(codes.flatten(), minlength=number) / codes.numel()
    return {"codes_used": (used > 0).float().mean(), "perplexity": torch.special.entr(used).sum().exp()}


def has_own_codes(network: Component) -> bool:
    """Return whether a VQModel's codes are others than diffusers draws for a new one, all of them in ±1/K."""
    codes: Tensor = network.quantize.embedding.weight
    return bool(codes.detach().abs().max() > 1.001 / len(codes))


def fix_codes(network: Component, codes: Tensor, name: str) -> None:
    """Write ``codes`` (K, c), which training is not to move, into a VQModel.

    Raises:
        ConfigurationError: its codebook has another shape.
    """
    weight = network.quantize.embedding.weight
    if weight.shape != codes.shape:
        raise ConfigurationError(
            f"{name} has {codes.shape[0]} codes of {codes.shape[1]} entries, the VQModel {weight.shape[0]} of "
            f"{weight.shape[1]}; set its `num_vq_embeddings: {codes.shape[0]}` and `vq_embed_dim: {codes.shape[1]}`."
        )
    with torch.no_grad():
        weight.copy_(codes)
    weight.requires_grad_(False)
