"""Columns: how each column of a dataset becomes part of a sample, a batch and a cache. A new kind of data is one more
subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor

from ldmprobe.data.classes import check_same_classes, class_names
from ldmprobe.data.column_names import ROW_NUMBER
from ldmprobe.data.image_files import ImageFiles
from ldmprobe.data.image_hashes import Hashes, image_hashes, text_hashes
from ldmprobe.data.pictures import Range, in_eight_bits, of_array, of_floats, opened
from ldmprobe.data.view import View
from ldmprobe.errors import ConfigurationError
from ldmprobe.types import PlainValues, Rows, is_table


@dataclass
class Reading:
    """A row that is being read.

    Attributes:
        place: its name in messages.
        row: its number.
        view: the part of the image that is seen.
        image_size: (width, height) of the upright image.
        rng: draws what differs from visit to visit; None for no augmentation.
        files: those that rows may name.
        notes: what was done to images, see `ldmprobe.data.pictures`, by the name of their column in batches.
    """

    place: str
    row: int
    view: View = field(default_factory=View)
    image_size: tuple[int, int] = (0, 0)
    rng: np.random.Generator | None = None
    files: ImageFiles = field(default_factory=ImageFiles)
    notes: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Column(ABC):
    """One column of a dataset.

    Attributes:
        column: its name in the dataset.
        name: its name in batches.
        aligned: whether it lies on the image, and so is cropped and mirrored with it.
        stacked: whether tensors of it become one in a batch.
    """

    column: str
    name: str
    aligned: ClassVar[bool] = False
    stacked: ClassVar[bool] = True

    @abstractmethod
    def read(self, value: Any, reading: Reading) -> object:
        """Return a row's value as a sample has it: a tensor, if its shape is the same in all rows, or anything else.

        Raises:
            Exception: it cannot be read; the message is shown with the row.
        """

    def undecoded(self, rows: Rows) -> Rows:
        """Return `rows` with this column as it is to be read."""
        return rows

    def informed(self, splits: Sequence[tuple[str, Rows]]) -> Self:
        """Return the column with what the (name, rows) of all splits say of it.

        Raises:
            ConfigurationError: they cannot be read as this column.
        """
        return self

    @property
    def classes(self) -> int | None:
        """Return how many classes its values have, where they are labels."""
        return None

    def collate(self, values: list[Any]) -> object:
        """Return the samples' values as a batch has them."""
        return torch.stack(values) if self.stacked and isinstance(values[0], Tensor) else values

    def hashes(self, rows: Rows, files: ImageFiles) -> Hashes:
        """Return a hash of each row's value, by which data sets are told apart."""
        return text_hashes(rows.select_columns([self.column]).with_format(None)[:][self.column])

    @property
    def key(self) -> PlainValues:
        """The settings on which cached values depend, as plain values."""
        return {"kind": type(self).__name__, **asdict(self)}

    def kept(self, value: Any, reading: Reading) -> object:
        """Return what a cache keeps of a row's value: a tensor, or what JSON can hold."""
        return self.read(value, reading)

    def restored(self, kept: Any, rng: np.random.Generator | None) -> object:
        """Return the value that `read` would give, from what a cache has kept."""
        return kept


@dataclass(frozen=True)
class ImageColumn(Column):
    """Images as floats (C, H, W) in [−1, 1].

    Pictures and arrays of whole numbers become pictures of 8 bits and go from [0, 255] to [−1, 1]; arrays of floats are
    taken as they are. Pictures are turned upright by their EXIF orientation.

    Args:
        channels: 1 (gray), 3 (RGB), 4 (RGBA); images of another mode are converted; None keeps theirs.
        background: the color under transparent images, unless `channels` is 4.
        value_range: the numbers that are black and white, in arrays and in gray pictures of 16 and 32 bits, where their
            type does not say.
    """

    column: str = "image"
    name: str = "image"
    channels: int | None = None
    background: str = "white"
    value_range: Range | None = None
    aligned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3, 4):
            raise ConfigurationError(f"ImageData got channels {self.channels}; expected 1 (gray), 3 (RGB) or 4 (RGBA).")
        try:
            ImageColor.getrgb(self.background)
        except (ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"ImageData got background {self.background!r}; expected a color's name or number, such as white or "
                "'#808080'."
            ) from error
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ConfigurationError(
                f"ImageData got value_range {list(self.value_range)}; expected [black, white] with black < white, such "
                "as [0, 255]."
            )

    def undecoded(self, rows: Rows) -> Rows:
        """Leave images as bytes or names of files: a row of one that cannot be decoded is named."""
        from datasets import Image as ImageFeature

        feature = (rows.features or {}).get(self.column)
        # Images of a table that does not say so.
        stored = isinstance(feature, dict) and set(feature) <= {"bytes", "path"}
        stored = stored or _dtype(feature) in ("binary", "large_binary", "string", "large_string")
        encoded = isinstance(feature, ImageFeature) or stored
        return rows.cast_column(self.column, ImageFeature(decode=False)) if encoded else rows

    def informed(self, splits: Sequence[tuple[str, Rows]]) -> ImageColumn:
        """Take the value range that an array's type says; lists of Python numbers have lost it."""
        of_16_bits = _dtype((splits[0][1].features or {}).get(self.column)) == "uint16"
        return replace(self, value_range=(0.0, 65535.0)) if of_16_bits and self.value_range is None else self

    def hashes(self, rows: Rows, files: ImageFiles) -> Hashes:
        return image_hashes(rows, self.column, files)

    def open(self, value: object, reading: Reading) -> Image.Image | np.ndarray:
        """Return an upright picture of 8 bits, or floats (C, H, W)."""
        notes = reading.notes.setdefault(self.name, [])
        picture = opened(value, reading.files, notes)
        if not isinstance(picture, np.ndarray):
            return in_eight_bits(picture, self.channels, self.background, self.value_range, notes)
        array = of_array(picture, self.value_range, notes)
        if isinstance(array, np.ndarray):
            size = reading.view.size
            if self.channels in (None, len(array)) and (size is None or array.shape[1:] == (size, size)):
                return array
            array = of_floats(array, self.value_range)
        return in_eight_bits(array, self.channels, self.background, None, notes)

    def seen(self, picture: Image.Image | np.ndarray, view: View) -> Tensor:
        """Return what is seen of an opened image."""
        if isinstance(picture, np.ndarray):
            return torch.from_numpy(view.array(picture))
        array = np.asarray(view.picture(picture), dtype=np.float32)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(array)) / 127.5 - 1

    def read(self, value: object, reading: Reading) -> Tensor:
        return self.seen(self.open(value, reading), reading.view)


@dataclass(frozen=True)
class LabelColumn(Column):
    """Class labels, whole numbers from 0 on.

    Args:
        num_classes: labels are below it; default: what the dataset says.
    """

    column: str = "label"
    name: str = "label"
    num_classes: int | None = None

    def informed(self, splits: Sequence[tuple[str, Rows]]) -> LabelColumn:
        names = class_names(splits[0][1], self.column)
        known = self.num_classes or (None if names is None else len(names))
        for name, rows in splits[1:]:
            check_same_classes(splits[0][0], names, name, class_names(rows, self.column))
        if is_table(splits[0][1]):
            for name, rows in splits:
                known = _check_labels(rows, self.column, name, known)
        elif known is None:
            raise ConfigurationError(
                f"A stream does not say how many classes {self.column!r} has; set the data's `num_classes`."
            )
        return replace(self, num_classes=known)

    def read(self, value: object, reading: Reading) -> int:
        label = int(value) if isinstance(value, (int, np.integer, np.bool_)) else -1
        if label < 0 or (self.num_classes is not None and label >= self.num_classes):
            top = "" if self.num_classes is None else f" to {self.num_classes - 1}"
            raise ConfigurationError(
                f"{reading.place} has class label {value!r} in column {self.column!r}, which is out of range; expected "
                f"0{top}."
            )
        return label

    @property
    def classes(self) -> int | None:
        return self.num_classes

    def collate(self, values: list[int]) -> Tensor:
        return torch.tensor(values)

    def restored(self, kept: Tensor, rng: np.random.Generator | None) -> int:
        return int(kept)


@dataclass(frozen=True)
class CaptionColumn(Column):
    """Captions. Of a list of them each visit of training draws one, and probes take the first."""

    column: str = "caption"
    name: str = "caption"

    def read(self, value: object, reading: Reading) -> str:
        return self.restored(self.kept(value, reading), reading.rng)

    def kept(self, value: Any, reading: Reading) -> str | list[str]:
        captions = list(value) if isinstance(value, (list, tuple)) else [value]
        if not captions or not all(isinstance(caption, str) for caption in captions):
            raise ConfigurationError(
                f"{reading.place} has {value!r} in column {self.column!r}; expected a caption, or a list of them. "
                "Remove the row or write one."
            )
        return value if isinstance(value, str) else captions

    def restored(self, kept: str | list[str], rng: np.random.Generator | None) -> str:
        if isinstance(kept, str):
            return kept
        return kept[0 if rng is None or len(kept) == 1 else int(rng.integers(len(kept)))]


def _dtype(feature: object) -> str | None:
    """Return the type of a value, or of an array's or nested list's values; None for anything else."""
    from datasets import Array2D, Array3D, LargeList, List, Value

    if isinstance(feature, (Value, Array2D, Array3D)):
        return feature.dtype
    return _dtype(feature.feature) if isinstance(feature, (List, LargeList)) else None


def _check_labels(rows: Rows, column: str, split: str, num_classes: int | None) -> int:
    """Return the number of classes: the greatest label plus one where `num_classes` does not say it."""
    labels = np.asarray(rows.with_format("numpy")[column][:])
    numbers = rows[ROW_NUMBER][:] if ROW_NUMBER in rows.column_names else range(len(rows))
    if labels.dtype.kind not in "iub" or labels.ndim != 1:
        values = rows[column][:]
        wrong = next((i for i, value in enumerate(values) if not isinstance(value, int)), 0)
        raise ConfigurationError(
            f"Row {numbers[wrong]} of split {split!r} has {values[wrong]!r} in column {column!r}; expected integer "
            "class labels, from 0 on. Turn names into numbers by `dataset.class_encode_column`, and remove rows "
            "without a label."
        )
    num_classes = num_classes or int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= num_classes:
        wrong = int(((labels < 0) | (labels >= num_classes)).argmax())
        raise ConfigurationError(
            f"Row {numbers[wrong]} of split {split!r} has class label {int(labels[wrong])} in column {column!r}, which "
            f"is out of range; expected 0 to {num_classes - 1}."
        )
    return num_classes
