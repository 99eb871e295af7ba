"""Columns of what lies on an image: masks, boxes, and objects, which are boxes with a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldmprobe.data.columns import Column, ImageColumn, Reading
from ldmprobe.data.image_files import ImageFiles
from ldmprobe.data.image_hashes import Hashes, image_hashes
from ldmprobe.data.pictures import opened
from ldmprobe.types import PlainValues, Rows


@dataclass(frozen=True)
class MaskColumn(Column):
    """Masks and maps: the number of the class or object at each pixel of the image, as whole numbers (H, W). They are
    scaled without mixing numbers, and palettes are read as numbers. JPEG, which changes numbers, is refused.
    """

    column: str = "mask"
    name: str = "mask"
    aligned: ClassVar[bool] = True

    def undecoded(self, rows: Rows) -> Rows:
        return ImageColumn(self.column).undecoded(rows)

    def hashes(self, rows: Rows, files: ImageFiles) -> Hashes:
        return image_hashes(rows, self.column, files)

    def read(self, value: object, reading: Reading) -> Tensor:
        mask = opened(value, reading.files, [])
        if not isinstance(mask, np.ndarray):
            if mask.format in ("JPEG", "MPO", "JPEG2000"):
                raise ValueError(
                    f"it is a {mask.format}, which has other numbers around each edge than were drawn; write masks as "
                    "PNG, and where there were but black and white, what is above 127 as white"
                )
            if mask.mode not in ("1", "L", "P", "I", "I;16"):
                raise ValueError(f"a mask holds one number for each pixel, this picture of mode {mask.mode} several")
            mask = np.asarray(mask)
        if mask.ndim != 2 or mask.dtype.kind not in "bui":
            raise ValueError(f"expected whole numbers (H, W), got {mask.dtype} of shape {mask.shape}")
        if mask.size and not np.iinfo(np.int32).min <= int(mask.min()) <= int(mask.max()) <= np.iinfo(np.int32).max:
            raise ValueError(f"it holds the number {max(mask.max(), mask.min(), key=abs)}; expected numbers of 32 bits")
        width, height = reading.image_size
        if mask.shape != (height, width):
            raise ValueError(
                f"it is {mask.shape[1]}×{mask.shape[0]}, its image {width}×{height}; expected the same size"
            )
        seen = reading.view.picture(Image.fromarray(mask.astype(np.int32)), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(seen, dtype=np.uint8 if mask.dtype in (bool, np.uint8) else np.int32))


@dataclass(frozen=True)
class BoxesColumn(Column):
    """Boxes as x0, y0, x1, y1 in fractions of what is seen of the image, clipped, (K, 4); those of which less than a
    pixel is seen are left out. A batch has a list of them. In the dataset they are x0, y0, x1, y1 in pixels.
    """

    column: str = "boxes"
    name: str = "boxes"
    aligned: ClassVar[bool] = True
    stacked: ClassVar[bool] = False

    def read(self, value: list[list[float]], reading: Reading) -> Tensor:
        return _seen(np.asarray(value, dtype=np.float64).reshape(-1, 4), reading)

    def kept(self, value: list[list[float]], reading: Reading) -> list[list[float]]:
        return self.read(value, reading).tolist()

    def restored(self, kept: list[list[float]], rng: np.random.Generator | None) -> Tensor:
        return torch.tensor(kept, dtype=torch.float32).reshape(-1, 4)


@dataclass(frozen=True)
class ObjectsColumn(Column):
    """Boxes with the class of each, (K, 5): x0, y0, x1, y1 as `BoxesColumn` has them, and the class, a whole number
    from 0 on. In the dataset each row has a dictionary with a list of either.

    Args:
        boxes, labels: the names of the two lists.
        num_classes: labels are below it; default: what the dataset says.
    """

    column: str = "objects"
    name: str = "objects"
    boxes: str = "boxes"
    labels: str = "labels"
    num_classes: int | None = None
    aligned: ClassVar[bool] = True
    stacked: ClassVar[bool] = False

    def informed(self, splits: Sequence[tuple[str, Rows]]) -> ObjectsColumn:
        from datasets import ClassLabel, List

        feature = (splits[0][1].features or {}).get(self.column)
        labels = feature.get(self.labels) if isinstance(feature, dict) else None
        if self.num_classes or not isinstance(labels, List) or not isinstance(labels.feature, ClassLabel):
            return self
        return replace(self, num_classes=len(labels.feature.names))

    def read(self, value: PlainValues, reading: Reading) -> Tensor:
        boxes = np.asarray(value[self.boxes], dtype=np.float64).reshape(-1, 4)
        labels = np.asarray(value[self.labels], dtype=np.float64).reshape(-1, 1)
        if len(boxes) != len(labels):
            raise ValueError(f"it has {len(boxes)} boxes and {len(labels)} classes; expected a class for each box")
        wrong = (labels < 0) | (labels % 1 != 0) | (labels >= (self.num_classes or np.inf))
        if wrong.any():
            top = "" if self.num_classes is None else f" to {self.num_classes - 1}"
            raise ValueError(f"it has the class {labels[wrong][0]:g}; expected a whole number from 0{top}")
        return _seen(np.concatenate([boxes, labels], axis=1), reading)

    def kept(self, value: PlainValues, reading: Reading) -> list[list[float]]:
        return self.read(value, reading).tolist()

    def restored(self, kept: list[list[float]], rng: np.random.Generator | None) -> Tensor:
        return torch.tensor(kept, dtype=torch.float32).reshape(-1, 5)


def _seen(boxes: np.ndarray, reading: Reading) -> Tensor:
    """Return what is seen of boxes in pixels, with what stands beside them.

    Raises:
        ValueError: they are widths and heights, or fractions, or not finite, or of another image's pixels.
    """
    width, height = reading.image_size
    corners = boxes[:, :4]
    whole = np.isfinite(corners).all() and (corners[:, 2:] > corners[:, :2]).all() and corners.max(initial=0) > 1
    inside = (corners[:, :2] < (width, height)).all() and (corners[:, 2:] > 0).all()
    if len(boxes) and not (whole and inside):
        raise ValueError(
            f"{corners.tolist()} are no boxes x0, y0, x1, y1 in pixels of an image of {width}×{height}: expected x0 "
            "< x1 and y0 < y1 (not widths and heights), no fractions, and all within the image, at least in part"
        )
    return torch.from_numpy(reading.view.boxes(boxes, width, height)).float()
