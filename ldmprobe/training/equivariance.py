"""Equivariance: latents whose transforms are decoded to the transformed images, a regularizer of the first stage."""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmprobe.errors import ConfigurationError, check_numbers

_FEWEST = 16  # pixels on a side that losses still look at


class Equivariance:
    r"""A regularizer: in a share of batches, latents are scaled down and turned, and the decoder is to answer with the
    image scaled and turned alike: min ‖D(τ z) − τ x‖ (EQ-VAE: Kouzelis et al., 2025, arXiv:2502.09509; scales alone:
    Skorokhodov et al., 2025, arXiv:2502.14831).

    Args:
        scales: the factor of the sides is drawn uniformly from [low, high].
        rotations: turn by a multiple of 90° that is drawn, too.
        probability: the share of batches.

    Raises:
        ConfigurationError: a probability or scale outside (0, 1].
    """

    def __init__(
        self, scales: tuple[float, float] = (0.25, 1.0), rotations: bool = True, probability: float = 0.5
    ) -> None:
        check_numbers("Equivariance", 0, 1, probability=probability)
        low, high = scales
        if not 0 < low <= high <= 1:
            raise ConfigurationError(f"Equivariance got scales [{low}, {high}]; expected 0 < low <= high <= 1.")
        self.scales, self.rotations, self.probability = (low, high), rotations, probability

    def __call__(self, latents: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents (N, c, h, w) and images (N, C, H, W), both transformed alike or as they are, by draws of
        torch's generator for the CPU.
        """
        draw, where, turns = torch.rand(3).tolist()
        if draw >= self.probability:
            return latents, images
        factor = images.shape[-1] // latents.shape[-1]
        low, high = self.scales
        scale = low + (high - low) * where
        sides = [min(side, max(ceil(_FEWEST / factor), round(side * scale))) for side in latents.shape[2:]]
        if sides != list(latents.shape[2:]):
            latents = F.interpolate(latents, sides, mode="bilinear", antialias=True)
            images = F.interpolate(images, [side * factor for side in sides], mode="bilinear", antialias=True)
        if self.rotations:
            quarter = int(4 * turns)
            latents, images = (torch.rot90(x, quarter, (2, 3)).contiguous() for x in (latents, images))
        return latents, images
