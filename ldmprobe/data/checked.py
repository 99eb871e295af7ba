"""CheckedRows: the first rows of each split, read before training, so that what is wrong with data is told early and
with its row.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ldmprobe.data.columns import CaptionColumn, ImageColumn
from ldmprobe.data.pictures import AS_IS, FLATTENED, REDUCED
from ldmprobe.data.rows import RowReader
from ldmprobe.errors import ConfigurationError
from ldmprobe.types import Batch

_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_FEW = 0.01  # share of captions with such a word that may mean something else, as "right" does
_DARK = {False: 1, True: 4352}
"""The brightest value, of 255 and of 65,535, up to which images are taken for others: of 0 and 1, and of 12 bits."""


@dataclass
class CheckedImages:
    """The findings in the images of one column.

    Attributes:
        notes: what was done to how many images, see `data/pictures.py`.
        low, high: the least and greatest value.
        first: the first image, with which others are compared.
        different: whether two images differ.
    """

    column: ImageColumn
    notes: Counter[str] = field(default_factory=Counter)
    low: float = float("inf")
    high: float = float("-inf")
    first: Tensor | None = None
    different: bool = False

    def add(self, image: Tensor, notes: Iterable[str]) -> None:
        """Take one more image into account."""
        self.first = image if self.first is None else self.first
        self.notes.update(notes)
        self.low, self.high = min(self.low, float(image.min())), max(self.high, float(image.max()))
        self.different = self.different or not torch.equal(image, self.first)

    @property
    def told(self) -> list[str]:
        """What was done to images, in words."""
        told = [f"{count} {note}" for note, count in self.notes.items() if note != AS_IS]
        told += [f"floats from {self.low:g} to {self.high:g} are taken as they are"] if self.notes[AS_IS] else []
        return [note.replace("the background", self.column.background) if FLATTENED in note else note for note in told]

    def check_range(self, split: str | None, setting: str) -> None:
        """Raise ConfigurationError if the values do not say which range they are of.

        Args:
            setting: where it can be said.
        """
        column = self.column.column
        if self.notes[AS_IS] and self.low >= 0:
            top = 1 if self.high <= 1 else 255 if self.high <= 255 else round(self.high)
            raise ConfigurationError(
                f"The floats in column {column!r} of split {split!r} go from {self.low:g} to {self.high:g}, and do not "
                f"say which are black and white; set {setting}, [0, {top}] or, if they are to be taken as they are, "
                "[-1, 1]."
            )
        deep = bool(self.notes[REDUCED]) or self.column.value_range == (0, 65535)
        top = 65535 if deep else 255
        brightest = round((self.high + 1) / 2 * top)
        if not self.notes[AS_IS] and brightest <= _DARK[deep]:
            raise ConfigurationError(
                f"The brightest of the values in column {column!r} of split {split!r} is {brightest} of {top}, so that "
                f"all images are black; set {setting}, [0, {brightest}] or, if they are that dark, [0, {top}]."
            )


@dataclass
class CheckedRows:
    """The findings in the first rows of a split.

    Attributes:
        kind: what they are for, "training" or "held-out"; both may be of one split.
        images: those of each column of images.
        first_row, num_rows: the number of the first, and how many there are.
        shape: of the images, of which all have the same; None where there is no row.
        captions: all of each row, stripped.
    """

    reader: RowReader
    kind: str
    images: list[CheckedImages]
    first_row: int = 0
    num_rows: int = 0
    shape: tuple[int, ...] | None = None
    captions: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, rows: Iterable[Batch], reader: RowReader, kind: str) -> CheckedRows:
        """Read all of `rows`.

        Raises:
            ConfigurationError: one cannot be read, or its image has another shape than the first; the row is named.
        """
        checked = cls(reader, kind, [CheckedImages(each) for each in reader.columns if isinstance(each, ImageColumn)])
        caption = reader.column_called("caption")
        for i, row in enumerate(rows):
            notes: dict[str, list[str]] = {}
            sample = reader.read(row, i, notes=notes)
            shape = tuple(sample["image"].shape)
            if checked.shape is None:
                checked.shape, checked.first_row = shape, sample["index"]
            checked.check_shape(shape, sample["index"], checked.shape)
            checked.num_rows += 1
            captions = row[caption.column] if isinstance(caption, CaptionColumn) else sample.get("caption", [])
            checked.captions += [each.strip() for each in ([captions] if isinstance(captions, str) else captions)]
            for images in checked.images:
                images.add(sample[images.column.name], notes.get(images.column.name, ()))
        return checked

    def check_shape(self, shape: tuple[int, ...], row: int, expected: tuple[int, ...] | None) -> None:
        """Raise ConfigurationError if `shape` is another than `expected`."""
        if expected and shape != expected:
            setting = "channels" if shape[0] != expected[0] else "image_size"
            raise ConfigurationError(
                f"{self.reader.place(row)} has an image of shape {shape}, others {expected}; set the data's "
                f"`{setting}`."
            )

    def check(self, image_shape: tuple[int, ...], without_range: Collection[str]) -> tuple[int, ...]:
        """Tell what was done to the images, and return their shape.

        Args:
            image_shape: of the splits that were checked before; () if this is the first.
            without_range: the names in batches of columns of which nobody has said yet that dark images are dark.

        Raises:
            ConfigurationError: there are no rows, or no captions in them, or the values do not say which range they are
                of.
        """
        split, reader = self.reader.split, self.reader
        if self.shape is None:
            raise ConfigurationError(f"Split {split!r} is empty.")
        self.check_shape(self.shape, self.first_row, image_shape)
        caption = reader.column_called("caption")
        if caption is not None and self.num_rows > 1 and self.captions and not any(self.captions):
            raise ConfigurationError(
                f"All captions of split {split!r} are empty in column {caption.column!r}, from the first row on; "
                "name the column that has them as `caption_column` (only a model without text can leave it out)."
            )
        for images in self.images:
            name, is_main = images.column.column, images.column is reader.image
            if not images.different and self.num_rows > 1:
                value = f", of the value {images.low:g} everywhere" if images.low == images.high else ""
                warnings.warn(
                    f"The {self.num_rows} {self.kind} images of split {split!r} that were checked are all the same"
                    f"{value}: there is nothing to learn but this one. Look at column {name!r} from row "
                    f"{self.first_row} on.",
                    stacklevel=2,
                )
            elif images.column.name in without_range and self.num_rows > 1:
                setting = "the data's `value_range`" if is_main else f"`value_range` of the ImageColumn {name!r}"
                images.check_range(split, setting)
            if told := images.told:
                rank_zero_info(
                    f"ldmprobe: of {self.num_rows} {self.kind} images in column {name!r} of split {split!r} that were "
                    f"checked: {'; '.join(told)}."
                )
        return self.shape


def check_captions(captions: Sequence[str], mirrored: bool) -> None:
    """Warn of empty captions, and of those that a mirrored image would belie.

    Args:
        captions: those that were checked, stripped.
        mirrored: whether training mirrors images.

    Raises:
        ConfigurationError: images are mirrored, and more than a hundredth of the captions tell left from right.
    """
    number = len(captions)
    if empty := captions.count(""):
        warnings.warn(
            f"{empty} of the {number} captions that were checked are empty: in training their images teach the model "
            "what to do without a prompt, as those do whose caption is dropped.",
            stacklevel=3,
        )
    sided = [caption for caption in captions if _SIDE.search(caption)] if mirrored else []
    if sided:
        told = (
            f"`random_flip` mirrors images and not their captions, and {len(sided)} of the {number} captions that were "
            f"checked tell left from right, such as {sided[0][:100]!r}; leave `random_flip` out."
        )
        if len(sided) > _FEW * number:
            raise ConfigurationError(told)
        warnings.warn(told, stacklevel=3)
