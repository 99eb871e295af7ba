"""From a row of a dataset to tensors: decode, convert, resize, crop, flip, scale to [−1, 1]."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ldmprobe.data.sources import ROW_NUMBER
from ldmprobe.errors import ConfigurationError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CHANNELS = {"P": 3, "PA": 3, "CMYK": 3, "LA": 1, "La": 1}  # of modes whose bands are not their channels


@dataclass(frozen=True)
class RowReader:
    """Reads image, label and caption of a row.

    PIL images and uint8 arrays go from [0, 255] to [−1, 1]; float arrays (C, H, W) are taken as they are.

    Attributes:
        size: images become size × size; None keeps theirs.
        channels: 1 (grey), 3 (RGB), 4 (RGBA); images of another mode are converted.
        resize: "crop" scales the short side and crops, "squash" ignores the aspect ratio.
        random_crop, random_flip: augmentation, in training only.
        num_classes: labels must be below it, where it is known.
        unit: what a number in a message counts; of a stream only the order of reading is known.
    """

    image_column: str
    label_column: str | None
    caption_column: str | None
    size: int | None
    channels: int | None
    resize: Literal["crop", "squash"] = "crop"
    random_crop: bool = False
    random_flip: bool = False
    num_classes: int | None = None
    unit: str = "Row"

    def read(self, row: dict[str, Any], row_number: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """One sample: ``image`` (C, H, W) float32, ``index``, and ``label``, ``caption`` if named.

        Args:
            rng: for augmentation; None for none.

        Raises:
            ConfigurationError: the image cannot be read; the row is named.
        """
        row_number = int(row.get(ROW_NUMBER, row_number))
        sample: dict[str, Any] = {"image": self._image(row[self.image_column], row_number, rng), "index": row_number}
        if self.label_column is not None:
            sample["label"] = self._label(row[self.label_column], row_number)
        if self.caption_column is not None:
            sample["caption"] = self._caption(row[self.caption_column], row_number)
        return sample

    def _label(self, value: Any, row_number: int) -> int:
        label = int(value) if isinstance(value, (int, np.integer)) else -1
        if label < 0 or (self.num_classes is not None and label >= self.num_classes):
            top = "" if self.num_classes is None else f" to {self.num_classes - 1}"
            raise ConfigurationError(
                f"{self.unit} {row_number} has class label {value!r} in column {self.label_column!r}, which is out of range; expected "
                f"0{top}."
            )
        return label

    def _caption(self, value: Any, row_number: int) -> str:
        if not isinstance(value, str):
            raise ConfigurationError(
                f"{self.unit} {row_number} has {value!r} in column {self.caption_column!r}; expected a caption. Remove the row or write one."
            )
        return value

    def _image(self, value: Any, row_number: int, rng: np.random.Generator | None) -> Tensor:
        from PIL import Image

        try:
            if isinstance(value, dict):  # undecoded: {"bytes": ..., "path": ...}
                file = io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"]
                value = Image.open(file, formats=_readable_formats())
            if not isinstance(value, Image.Image):
                array = np.asarray(value)
                if array.dtype.kind == "f":
                    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
                value = _to_pil(array)
            if value.mode.startswith("I") or value.mode == "F":
                value = _to_eight_bits(value)
            channels = self.channels or _CHANNELS.get(value.mode, len(value.getbands()))
            return self._resized(value.convert(_MODES[channels]), rng)
        except Exception as error:  # Pillow's formats raise many kinds, all meaning "not readable"
            raise ConfigurationError(
                f"{self.unit} {row_number}, column {self.image_column!r}: the image cannot be read ({error}). Remove the row or repair it."
            ) from error

    def _resized(self, image: Any, rng: np.random.Generator | None) -> Tensor:
        from PIL import Image, ImageOps

        if self.size is not None and image.size != (self.size, self.size):
            if self.resize == "squash":
                image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
            else:
                centre = tuple(rng.random(2)) if rng is not None and self.random_crop else (0.5, 0.5)
                image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC, centering=centre)
        if rng is not None and self.random_flip and rng.random() < 0.5:
            image = ImageOps.mirror(image)
        array = np.asarray(image, dtype=np.float32)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(array)) / 127.5 - 1


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples to a batch: ``image`` (N, C, H, W), ``label`` and ``index`` (N,) int64, ``caption`` a list of strings.

    Raises:
        ConfigurationError: images of different shapes; the rows are named.
    """
    first = samples[0]["image"].shape
    for sample in samples:
        if sample["image"].shape != first:
            setting = "channels" if sample["image"].shape[0] != first[0] else "image_size"
            raise ConfigurationError(
                f"Row {sample['index']} has an image of shape {tuple(sample['image'].shape)}, row {samples[0]['index']} of "
                f"{tuple(first)}; set the data's `{setting}`."
            )
    batch: dict[str, Any] = {"image": torch.stack([sample["image"] for sample in samples])}
    for key in ("index", "label"):
        if key in samples[0]:
            batch[key] = torch.tensor([sample[key] for sample in samples])
    if "caption" in samples[0]:
        batch["caption"] = [sample["caption"] for sample in samples]
    return batch


def _to_pil(array: np.ndarray) -> Any:
    from PIL import Image

    if array.ndim == 3 and array.shape[0] in _MODES and array.shape[2] not in _MODES:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"integer pixels from {array.min()} to {array.max()}, expected 0 to 255")
    return Image.fromarray(array.astype(np.uint8))


def _to_eight_bits(image: Any) -> Any:
    """16- and 32-bit grey, and float grey, to 8 bits; PIL's own conversion clips at 255."""
    from PIL import Image

    array = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I;16"):
        top = 65535.0
    elif image.mode == "F" and array.max() <= 1:
        top = 1.0
    else:
        top = 255.0 if array.max() <= 255 else 65535.0
    if array.min() < 0 or array.max() > top:
        raise ValueError(f"grey values from {array.min():g} to {array.max():g}, expected 0 to {top:g}")
    return Image.fromarray((array / top * 255).round().astype(np.uint8))


@cache
def _readable_formats() -> list[str]:
    """All that Pillow reads but EPS, which is a program, and which Ghostscript would run."""
    from PIL import Image

    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]
