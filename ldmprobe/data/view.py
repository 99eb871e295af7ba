"""View: the part of an image that a sample shows, drawn once for each row and followed by all its columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class View:
    """A square of the upright image, scaled and perhaps mirrored.

    Attributes:
        size: side of the square in pixels; None keeps the image's size.
        resize: "crop" scales the short side and crops the long one, "squash" ignores the aspect ratio.
        center: where the crop lies, from (0, 0), top left, to (1, 1).
        mirrored: whether left and right are exchanged.
    """

    size: int | None = None
    resize: Literal["crop", "squash"] = "crop"
    center: tuple[float, float] = (0.5, 0.5)
    mirrored: bool = False

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of what is seen of an image, in its own pixels."""
        if self.size is None or self.resize == "squash" or width == height:
            return 0.0, 0.0, float(width), float(height)
        side = float(min(width, height))
        left, top = (width - side) * self.center[0], (height - side) * self.center[1]
        return left, top, left + side, top + side

    def picture(self, picture: Image.Image, resampling: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
        """Return what is seen of a picture."""
        if self.size is not None and picture.size != (self.size, self.size):
            picture = picture.resize((self.size, self.size), resampling, box=self.box(*picture.size))
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else picture

    def array(self, array: np.ndarray) -> np.ndarray:
        """Return what is seen of an array (…, H, W) that already has the size."""
        return np.ascontiguousarray(array[..., ::-1] if self.mirrored else array)

    def boxes(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """Return boxes (K, 4) of x0, y0, x1, y1 in an image's pixels as fractions of what is seen, clipped; those of
        which less than a pixel is seen are left out. Further columns (K, 4 + M) stay with their box.
        """
        boxes, further = boxes[:, :4], boxes[:, 4:]
        left, top, right, bottom = self.box(width, height)
        corner, extent = np.array([left, top, left, top]), np.array([right - left, bottom - top] * 2)
        seen = ((boxes - corner) / extent).clip(0, 1)
        if self.mirrored:
            seen[:, [0, 2]] = 1 - seen[:, [2, 0]]
        pixels = (seen[:, 2:] - seen[:, :2]) * (extent[:2] if self.size is None else self.size)
        return np.concatenate([seen, further], axis=1)[(pixels >= 1).all(1)]
