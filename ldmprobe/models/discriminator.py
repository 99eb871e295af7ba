"""PatchDiscriminator: tells real patches of images from decoded ones."""

from __future__ import annotations

from itertools import pairwise
from math import gcd
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError, check_numbers

Norm = Literal["group", "spectral", "none"]


def receptive_field(layers: int) -> int:
    """Return the pixels on a side that one logit sees: 7, 16, 34, 70 for 0, 1, 2, 3 halvings."""
    field = 7  # two convolutions of 4×4 without stride
    for _ in range(layers):
        field = 2 * field + 2
    return field


def fitting_layers(image_size: int) -> int:
    """Return the most halvings with which a logit sees no more than half an image's side, 1 at least: with more, all
    logits see the padding at the border.
    """
    return max([1, *(n for n in range(1, 12) if receptive_field(n) <= image_size / 2)])


class PatchDiscriminator(nn.Module):
    """The PatchGAN of Isola et al., 2017, arXiv:1611.07004 (4×4 convolutions, leaky ReLUs, a map of logits), without
    batch normalization, which mixes the samples of a batch and differs between ranks.

    Args:
        channels: of the images.
        image_size: pixels on a side, by which the number of layers is chosen: the most with which a logit sees no more
            than half of them.
        layers: halvings of the resolution, where they are not to be chosen.
        width: channels after the first convolution; they double with each halving, up to 8 times.
        norm: "group" (GroupNorm), "spectral" (Miyato et al., 2018, arXiv:1802.05957: the weights' spectral norm is 1)
            or "none".

    Raises:
        ConfigurationError: neither ``image_size`` nor ``layers``, or so many layers that a logit sees more than the
            whole image.
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int | None = None,
        layers: int | None = None,
        width: int = 64,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        check_numbers("PatchDiscriminator", 1, channels=channels, image_size=image_size, width=width)
        check_numbers("PatchDiscriminator", 0, layers=layers)
        if norm not in get_args(Norm):
            raise ConfigurationError(f"PatchDiscriminator got norm {norm!r}; expected one of {get_args(Norm)}.")
        if layers is None and image_size is None:
            raise ConfigurationError("PatchDiscriminator got neither image_size nor layers; give the image_size.")
        if layers is None:
            layers = fitting_layers(image_size or 0)
        elif image_size is not None and receptive_field(layers) > image_size:
            raise ConfigurationError(
                f"PatchDiscriminator got layers {layers}, with which a logit sees {receptive_field(layers)} pixels, "
                f"for images of {image_size}; leave it out, or write at most {fitting_layers(image_size)}."
            )
        self.channels, self.layers, self.norm = channels, layers, norm
        widths = [width * min(2**n, 8) for n in range(layers + 1)]
        body = [_convolution(channels, widths[0], 2 if layers else 1, norm), nn.LeakyReLU(0.2)]
        for n, (narrow, wide) in enumerate(pairwise(widths), start=1):
            body.append(_convolution(narrow, wide, 2 if n < layers else 1, norm))
            body += [nn.GroupNorm(gcd(32, max(1, wide // 4)), wide)] if norm == "group" else []
            body.append(nn.LeakyReLU(0.2))
        self.body = nn.Sequential(*body, _convolution(widths[-1], 1, 1, norm))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) → logits (N, 1, h, w), one for each patch."""
        return self.body(images)


def _convolution(narrow: int, wide: int, stride: int, norm: Norm) -> nn.Module:
    convolution = nn.Conv2d(narrow, wide, 4, stride, padding=1)
    with torch.no_grad():
        convolution.weight.normal_(0, 0.02)
        convolution.bias.zero_()  # type: ignore[union-attr]
    return nn.utils.parametrizations.spectral_norm(convolution) if norm == "spectral" else convolution
