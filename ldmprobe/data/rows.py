"""RowReader: from a row of a dataset to tensors: decode, convert, resize, crop, flip, scale to [−1, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ldmprobe.data.pictures import ImageFiles, Range, in_eight_bits, of_array, of_floats, opened
from ldmprobe.data.sources import ROW_NUMBER
from ldmprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class RowReader:
    """Reads image, label and caption of a row.

    Pictures and arrays of whole numbers become pictures of 8 bits and go from [0, 255] to [−1, 1]; arrays of floats are taken as they are.
    Pictures are turned upright by their EXIF orientation.

    Attributes:
        size: images become size × size; None keeps theirs.
        channels: 1 (grey), 3 (RGB), 4 (RGBA); images of another mode are converted; None keeps theirs.
        resize: "crop" scales the short side and crops, "squash" ignores the aspect ratio.
        random_crop, random_flip: augmentation, in training only.
        num_classes: labels must be below it, where it is known.
        unit: what a number in a message counts; of a stream only the order of reading is known.
        split: of the dataset, for messages.
        background: the color under transparent images, unless ``channels`` is 4.
        value_range: the numbers that are black and white, in arrays and in grey pictures of 16 and 32 bits, where their type does not say.
        files: those that rows may name.
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
    split: str | None = None
    background: str = "white"
    value_range: Range | None = None
    files: ImageFiles = field(default_factory=ImageFiles)

    def read(self, row: dict[str, Any], row_number: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """One sample: ``image`` (C, H, W) float32, ``index``, and ``label``, ``caption`` if named. Of several captions it is the first, or
        with ``rng`` one that is drawn.

        Args:
            rng: for augmentation; None for none.

        Raises:
            ConfigurationError: the image cannot be read; the row is named.
        """
        return self.read_noting(row, row_number, rng, [])

    def read_noting(
        self, row: dict[str, Any], row_number: int, rng: np.random.Generator | None, notes: list[str]
    ) -> dict[str, Any]:
        """The same sample, with what was done to its image added to ``notes``."""
        row_number = int(row.get(ROW_NUMBER, row_number))
        place = self.place(row_number)
        image = self._image(row[self.image_column], place, rng, notes)
        sample: dict[str, Any] = {"image": image, "index": row_number}
        if self.label_column is not None:
            sample["label"] = self._label(row[self.label_column], place)
        if self.caption_column is not None:
            sample["caption"] = self._caption(row[self.caption_column], place, rng)
        return sample

    def place(self, row_number: int) -> str:
        """A row's name in messages."""
        return f"{self.unit} {row_number}" + (f" of split {self.split!r}" if self.split else "")

    def _label(self, value: Any, place: str) -> int:
        label = int(value) if isinstance(value, (int, np.integer, np.bool_)) else -1
        if label < 0 or (self.num_classes is not None and label >= self.num_classes):
            top = "" if self.num_classes is None else f" to {self.num_classes - 1}"
            raise ConfigurationError(
                f"{place} has class label {value!r} in column {self.label_column!r}, which is out of range; expected 0{top}."
            )
        return label

    def _caption(self, value: Any, place: str, rng: np.random.Generator | None) -> str:
        captions = value if isinstance(value, (list, tuple)) else [value]
        if not captions or not all(isinstance(caption, str) for caption in captions):
            raise ConfigurationError(
                f"{place} has {value!r} in column {self.caption_column!r}; expected a caption, or a list of them. Remove the row or write one."
            )
        return captions[0 if rng is None or len(captions) == 1 else int(rng.integers(len(captions)))]

    def _image(self, value: Any, place: str, rng: np.random.Generator | None, notes: list[str]) -> Tensor:
        try:
            return self._resized(self._picture(value, notes), rng)
        except Exception as error:  # Pillow's formats raise many kinds, all meaning "not readable"
            raise ConfigurationError(
                f"{place}, column {self.image_column!r}: the image cannot be read ({error}). Remove the row or repair it."
            ) from error

    def _picture(self, value: Any, notes: list[str]) -> Image | np.ndarray:
        """A picture of 8 bits, or floats (C, H, W)."""
        picture = opened(value, self.files, notes)
        if isinstance(picture, np.ndarray):
            picture = of_array(picture, self.value_range, notes)
            if isinstance(picture, np.ndarray) and self._fits(*picture.shape):
                return picture
            picture = of_floats(picture, self.value_range) if isinstance(picture, np.ndarray) else picture
            return in_eight_bits(picture, self.channels, self.background, None, notes)
        return in_eight_bits(picture, self.channels, self.background, self.value_range, notes)

    def _fits(self, channels: int, height: int, width: int) -> bool:
        return self.channels in (None, channels) and (self.size is None or height == width == self.size)

    def _resized(self, picture: Image | np.ndarray, rng: np.random.Generator | None) -> Tensor:
        from PIL import Image, ImageOps

        if isinstance(picture, np.ndarray):
            flipped = rng is not None and self.random_flip and rng.random() < 0.5
            return torch.from_numpy(np.ascontiguousarray(picture[..., ::-1] if flipped else picture))
        if self.size is not None and picture.size != (self.size, self.size):
            if self.resize == "squash":
                picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
            else:
                across, down = rng.random(2) if rng is not None and self.random_crop else (0.5, 0.5)
                picture = ImageOps.fit(
                    picture, (self.size, self.size), Image.Resampling.BICUBIC, centering=(across, down)
                )
        if rng is not None and self.random_flip and rng.random() < 0.5:
            picture = ImageOps.mirror(picture)
        array = np.asarray(picture, dtype=np.float32)
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
