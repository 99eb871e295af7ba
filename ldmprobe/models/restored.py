"""What samples restore: images with holes, or small images; how far off they are, and what is put right afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldmprobe.models.corruption import pasted


@dataclass(frozen=True)
class FilledIn:
    """Images with holes that samples fill in; sample i is of number i mod K.

    Attributes:
        images: (K, C, H, W) in [−1, 1].
        holes: (K, 1, H, W) or (1, 1, H, W), not 0 where images are filled in.
    """

    images: Tensor
    holes: Tensor

    def known_error(self, samples: Tensor) -> float:
        """Return the root of the mean squared error of known pixels: 0 where samples (N, C, H, W) keep them."""
        images, holes = self._of(samples)
        known = (1 - holes).expand_as(samples)
        return float(((samples - images).square() * known).sum().div(known.sum().clamp(min=1)).sqrt())

    def pasted(self, samples: Tensor, feather: int = 0) -> Tensor:
        """Return samples with the known pixels in their place, gone over into within so many pixels of the hole."""
        return pasted(samples, *self._of(samples), feather)

    def _of(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        images, holes = (_row_of_each(each, samples) for each in (self.images, (self.holes != 0).float()))
        return images, holes


@dataclass(frozen=True)
class Enlarged:
    """Small images that samples enlarge; sample i is of number i mod K.

    Attributes:
        images: (K, C, h, w) in [−1, 1].
    """

    images: Tensor

    def color_error(self, samples: Tensor) -> float:
        """Return the root mean squared difference of channels' means, of samples (N, C, H, W) and small images."""
        return float(self._shift(samples).square().mean().sqrt())

    def matched(self, samples: Tensor) -> Tensor:
        """Return samples each channel of which is shifted to its small image's mean."""
        return samples - self._shift(samples)

    def _shift(self, samples: Tensor) -> Tensor:
        small = _row_of_each(self.images, samples)
        return samples.mean((2, 3), keepdim=True) - small.mean((2, 3), keepdim=True)


def _row_of_each(rows: Tensor, samples: Tensor) -> Tensor:
    return rows[torch.arange(len(samples)) % len(rows)].to(samples)
