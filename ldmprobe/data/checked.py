"""CheckedRows: the first rows of each split, read before training, so that what is wrong with data is told early and
with its row.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lightning.pytorch.utilities import rank_zero_info

from ldmprobe.data.pictures import AS_IS, FLATTENED, REDUCED
from ldmprobe.data.rows import RowReader
from ldmprobe.errors import ConfigurationError
from ldmprobe.types import Batch

_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_FEW = 0.01  # share of captions with such a word that may mean something else, as "right" does
_DARK = {False: 1, True: 4352}
"""The brightest value, of 255 and of 65,535, up to which images are taken for others: of 0 and 1, and of 12 bits."""


@dataclass
class CheckedRows:
    """The findings in the first rows of a split.

    Attributes:
        kind: what they are for, "training" or "held-out"; both may be of one split.
        first_row, num_rows: the number of the first, and how many there are.
        shape: of the images, of which all have the same; None where there is no row.
        captions: those of the rows, stripped.
        notes: what was done to how many images, see `data/pictures.py`.
        low, high: the least and greatest value.
        different: whether two images differ.
    """

    reader: RowReader
    kind: str
    first_row: int = 0
    num_rows: int = 0
    shape: tuple[int, ...] | None = None
    captions: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    low: float = float("inf")
    high: float = float("-inf")
    different: bool = False

    @classmethod
    def read(cls, rows: Iterable[Batch], reader: RowReader, kind: str) -> CheckedRows:
        """Read all of `rows`.

        Raises:
            ConfigurationError: one cannot be read, or its image has another shape than the first; the row is named.
        """
        checked, first = cls(reader, kind), None
        for i, row in enumerate(rows):
            notes: list[str] = []
            sample = reader.read(row, i, notes=notes)
            image = sample["image"]
            if first is None:
                first, checked.shape, checked.first_row = image, tuple(image.shape), sample["index"]
            checked.check_shape(tuple(image.shape), sample["index"], checked.shape)
            checked.num_rows += 1
            checked.notes.update(notes)
            checked.captions += [sample["caption"].strip()] if "caption" in sample else []
            checked.low, checked.high = min(checked.low, float(image.min())), max(checked.high, float(image.max()))
            checked.different = checked.different or not bool((image == first).all())
        return checked

    def check_shape(self, shape: tuple[int, ...], row: int, expected: tuple[int, ...] | None) -> None:
        """Raise ConfigurationError if `shape` is another than `expected`."""
        if expected and shape != expected:
            setting = "channels" if shape[0] != expected[0] else "image_size"
            raise ConfigurationError(
                f"{self.reader.place(row)} has an image of shape {shape}, others {expected}; set the data's "
                f"`{setting}`."
            )

    def check(self, image_shape: tuple[int, ...], check_range: bool) -> tuple[int, ...]:
        """Tell what was done to the images, and return their shape.

        Args:
            image_shape: of the splits that were checked before; () if this is the first.
            check_range: whether nobody has said yet that dark images are dark.

        Raises:
            ConfigurationError: there are no rows, or no captions in them, or the values do not say which range they are
                of.
        """
        split, reader = self.reader.split, self.reader
        if self.shape is None:
            raise ConfigurationError(f"Split {split!r} is empty.")
        self.check_shape(self.shape, self.first_row, image_shape)
        if self.num_rows > 1 and self.captions and not any(self.captions):
            raise ConfigurationError(
                f"All captions of split {split!r} are empty in column {self._caption_column!r}, from the first row on; "
                "name the column that has them as `caption_column` (only a model without text can leave it out)."
            )
        if not self.different and self.num_rows > 1:
            value = f", of the value {self.low:g} everywhere" if self.low == self.high else ""
            warnings.warn(
                f"The {self.num_rows} {self.kind} images of split {split!r} that were checked are all the same{value}: "
                f"there is nothing to learn but this one. Look at column {reader.image.column!r} from row "
                f"{self.first_row} on.",
                stacklevel=2,
            )
        elif check_range and self.num_rows > 1:
            self._check_range()
        told = [f"{count} {note}" for note, count in self.notes.items() if note != AS_IS]
        told += [f"floats from {self.low:g} to {self.high:g} are taken as they are"] if self.notes[AS_IS] else []
        told = [note.replace("the background", reader.image.background) if FLATTENED in note else note for note in told]
        if told:
            rank_zero_info(
                f"ldmprobe: of {self.num_rows} {self.kind} images of split {split!r} that were checked: "
                f"{'; '.join(told)}."
            )
        return self.shape

    @property
    def _caption_column(self) -> str | None:
        column = self.reader.column_called("caption")
        return None if column is None else column.column

    def _check_range(self) -> None:
        column, split = self.reader.image.column, self.reader.split
        if self.notes[AS_IS] and self.low >= 0:
            top = 1 if self.high <= 1 else 255 if self.high <= 255 else round(self.high)
            raise ConfigurationError(
                f"The floats in column {column!r} of split {split!r} go from {self.low:g} to {self.high:g}, and do not "
                f"say which are black and white; set the data's `value_range`, [0, {top}] or, if they are to be taken "
                "as they are, [-1, 1]."
            )
        deep = bool(self.notes[REDUCED]) or self.reader.image.value_range == (0, 65535)
        top = 65535 if deep else 255
        brightest = round((self.high + 1) / 2 * top)
        if not self.notes[AS_IS] and brightest <= _DARK[deep]:
            raise ConfigurationError(
                f"The brightest of the values in column {column!r} of split {split!r} is {brightest} of {top}, so that "
                f"all images are black; set the data's `value_range`, [0, {brightest}] or, if they are that dark, [0, "
                f"{top}]."
            )


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
