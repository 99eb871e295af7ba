r"""Linear operators A of measurements y = A x + noise: what of an image x is known.

An image of row i has its own operator where there is one for each row, such as a mask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldmprobe.diffusion.named import Named
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.digest import fingerprint
from ldmprobe.models.corruption import MaskFamily, check_masks, random_masks
from ldmprobe.types import PlainValues


class Operator(Named, ABC):
    """A linear map A of images. Name and settings are kept as a ``Sampler``'s.

    Attributes:
        gram: c of A Aᵀ = c · 1 among what it can measure, by which ``Replacement`` inverts it; None where there is no
            such number.
    """

    gram: float | None = None

    @abstractmethod
    def apply(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """Return A x (N, …) of images (N, C, H, W), which are those of ``rows`` (N); differentiable."""

    @abstractmethod
    def transpose(self, u: Tensor, rows: Sequence[int]) -> Tensor:
        """Return Aᵀ u (N, C, H, W) of u (N, …), for which ⟨A x, u⟩ = ⟨x, Aᵀ u⟩."""

    def restricted(self, u: Tensor, rows: Sequence[int]) -> Tensor:
        """Return u (N, …) without the entries that measure nothing; by default, all measure something."""
        return u

    def inverse(self, u: Tensor, rows: Sequence[int]) -> Tensor:
        """Return A⁺ u (N, C, H, W): the smallest image that is measured as u."""
        assert self.gram is not None
        return self.transpose(u, rows) / self.gram

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ConfigurationError if it does not take images of this shape (C, H, W)."""


class BlockMeans(Operator):
    """The means over f × f blocks of pixels: super-resolution.

    Args:
        factor: f, at least 2.

    Raises:
        ConfigurationError: a smaller factor, or, before sampling, images whose sides are no multiples of it.
    """

    name = "block means"

    def __init__(self, factor: int) -> None:
        check_numbers("BlockMeans", 2, factor=factor)
        self.factor, self.gram = factor, factor**-2

    def apply(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        return F.avg_pool2d(x, self.factor)

    def transpose(self, u: Tensor, rows: Sequence[int]) -> Tensor:
        return F.interpolate(u, scale_factor=self.factor, mode="nearest") / self.factor**2

    def check(self, image_shape: tuple[int, ...]) -> None:
        if any(side % self.factor for side in image_shape[1:]):
            raise ConfigurationError(
                f"BlockMeans has factor {self.factor}, and the model's images are {image_shape[1]}×{image_shape[2]}; "
                "give a factor that divides both sides."
            )


class KnownPixels(Operator):
    """The pixels outside a hole: inpainting. A measurement is an image with 0, gray, in the hole, which says nothing.

    Args:
        hole: file of an image as large as the model's, without transparency and no JPEG; what is not black is to be
            filled in. Default: a random hole for each row, as ``Masked`` draws them.
        families, share, seed: of random holes, as ``Masked``'s.

    Raises:
        ConfigurationError: there is no such file, it is a JPEG or transparent in places, or settings of random holes
            are out of range; before sampling, a hole of another size than the images, or of nothing, or all.
    """

    name = "known pixels"
    gram = 1.0

    def __init__(
        self,
        hole: str | None = None,
        families: Sequence[MaskFamily] = ("boxes", "strokes", "halves"),
        share: tuple[float, float] = (0.1, 0.9),
        seed: int = 0,
    ) -> None:
        check_masks("KnownPixels", families, share)
        self.hole, self.families, self.share, self.seed = hole, families, share, seed
        self._given = None if hole is None else _read(Path(hole))
        self._drawn: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def outside(cls, holes: Tensor) -> Self:
        """Return the operator of given holes (K, 1, H, W), of row i number i mod K; what is not 0 is to be filled."""
        made = cls()
        made._given = (holes != 0).byte().cpu()
        return made

    @property
    def settings(self) -> PlainValues:
        return super().settings if self._given is None else {"hole": fingerprint(self._given)[:8]}

    def apply(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        return x * self._known(x, rows)

    def transpose(self, u: Tensor, rows: Sequence[int]) -> Tensor:
        return u * self._known(u, rows)

    def check(self, image_shape: tuple[int, ...]) -> None:
        if self._given is None:
            return
        size = tuple(self._given.shape[2:])
        if size != tuple(image_shape[1:]):
            raise ConfigurationError(
                f"The hole is {size[0]}×{size[1]}, and the model's images are {image_shape[1]}×{image_shape[2]}; give "
                "one of their size."
            )
        empty, whole = not bool(self._given.flatten(1).any(1).all()), bool(self._given.all())
        if empty or whole:
            what = "empty: nothing is to be filled in" if empty else "all of the image: nothing of it is known"
            raise ConfigurationError(
                f"The hole is {what}. Give one that is black where the image is known, and another color where it is "
                "to be filled in."
            )

    def restricted(self, u: Tensor, rows: Sequence[int]) -> Tensor:
        return u * self._known(u, rows)

    def holes(self, images: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the holes of these rows of images (N, C, H, W), (N, 1, H, W), not 0 there."""
        if self._given is not None:
            return self._given[torch.tensor(rows, dtype=torch.long) % len(self._given)]
        return torch.stack([self._hole_of(row, (images.shape[2], images.shape[3])) for row in rows])

    def _known(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        return 1 - self.holes(x, rows).to(x)

    def _hole_of(self, row: int, size: tuple[int, int]) -> Tensor:
        if (row, *size) not in self._drawn:
            self._drawn[row, *size] = random_masks([row], size, self.families, self.share, self.seed)[0]
        return self._drawn[row, *size]


def _read(path: Path) -> Tensor:
    """Return the hole that an image file shows when it is upright, (1, 1, H, W)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as stored:
            picture = ImageOps.exif_transpose(stored)
    except OSError as error:
        raise ConfigurationError(f"The hole {path} cannot be read ({error}); give an image file.") from error
    if stored.format == "JPEG":
        raise ConfigurationError(
            f"The hole {path} is a JPEG, which is not quite black around edges, where specks would be filled in, too; "
            "give a PNG, in which what is above 127 is white, and all else black."
        )
    if picture.has_transparency_data and np.asarray(picture.convert("RGBA").getchannel("A")).min() < 255:
        raise ConfigurationError(
            f"The hole {path} is transparent in places, which does not say whether these are to be filled in; give an "
            "image without transparency that is black where the image is known, and white where it is to be filled in."
        )
    return torch.from_numpy((np.asarray(picture.convert("L")) != 0).astype(np.uint8))[None, None]
