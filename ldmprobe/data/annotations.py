"""Columns of what lies on an image: masks, and boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldmprobe.data.columns import Column, ImageColumn, Reading
from ldmprobe.data.identity import Hashes, image_hashes
from ldmprobe.data.image_files import ImageFiles
from ldmprobe.data.pictures import opened
from ldmprobe.types import Rows


@dataclass(frozen=True)
class MaskColumn(Column):
    """Masks and maps: the number of the class or object at each pixel of the image, as whole numbers (H, W). They are
    scaled without mixing numbers, and palettes are read as numbers.
    """

    column: str = "mask"
    name: str = "mask"
    aligned: ClassVar[bool] = True

    def undecoded(self, rows: Rows) -> Rows:
        return ImageColumn(self.column).undecoded(rows)

    def hashes(self, rows: Rows, files: ImageFiles) -> Hashes:
        return image_hashes(rows, self.column, files)

    def read(self, value: Any, reading: Reading) -> Tensor:
        mask = opened(value, reading.files, [])
        if not isinstance(mask, np.ndarray):
            if mask.mode not in ("1", "L", "P", "I", "I;16"):
                raise ValueError(f"a mask holds one number for each pixel, this picture of mode {mask.mode} several")
            mask = np.asarray(mask)
        if mask.ndim != 2 or mask.dtype.kind not in "bui":
            raise ValueError(f"expected whole numbers (H, W), got {mask.dtype} of shape {mask.shape}")
        width, height = reading.image_size
        if mask.shape != (height, width):
            raise ValueError(
                f"it is {mask.shape[1]}×{mask.shape[0]}, its image {width}×{height}; expected the same size"
            )
        seen = reading.view.picture(Image.fromarray(mask.astype(np.int32)), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(seen, dtype=np.uint8 if mask.dtype.itemsize == 1 else np.int32))


@dataclass(frozen=True)
class BoxesColumn(Column):
    """Boxes as x0, y0, x1, y1 in fractions of what is seen of the image, clipped, (K, 4); those of which less than a
    pixel is seen are left out. A batch has a list of them. In the dataset they are x0, y0, x1, y1 in pixels.
    """

    column: str = "boxes"
    name: str = "boxes"
    aligned: ClassVar[bool] = True
    stacked: ClassVar[bool] = False

    def read(self, value: Any, reading: Reading) -> Tensor:
        boxes = np.asarray(value, dtype=np.float64).reshape(-1, 4)
        width, height = reading.image_size
        if len(boxes) and ((boxes[:, 2:] <= boxes[:, :2]).any() or boxes.max() <= 1):
            raise ValueError(
                f"{boxes.tolist()} are no boxes x0, y0, x1, y1 in pixels of an image of {width}×{height}: expected x0 "
                "< x1 and y0 < y1 (not widths and heights), and no fractions"
            )
        return torch.from_numpy(reading.view.boxes(boxes, width, height)).float()

    def kept(self, value: Any, reading: Reading) -> list[list[float]]:
        return self.read(value, reading).tolist()

    def restored(self, kept: Any, rng: np.random.Generator | None) -> Tensor:
        return torch.tensor(kept, dtype=torch.float32).reshape(-1, 4)
