"""RowReader: from a row of a dataset to a sample, and from samples to a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import default_collate

from ldmprobe.data.column_names import ROW_NUMBER
from ldmprobe.data.columns import Column, ImageColumn, Reading
from ldmprobe.data.image_files import ImageFiles
from ldmprobe.data.view import View
from ldmprobe.errors import ConfigurationError
from ldmprobe.types import Batch, Rows


@dataclass(frozen=True)
class RowReader:
    """Reads the columns of a row, each from the same view of the image.

    Attributes:
        image: the column of images.
        others: the further columns.
        size: images become size × size; None keeps theirs.
        resize: "crop" scales the short side and crops, "squash" ignores the aspect ratio.
        random_crop, random_flip: augmentation, in training only.
        unit: what a number in a message counts; of a stream only the order of reading is known.
        split: the dataset's split, for messages.
        files: those that rows may name.
    """

    image: ImageColumn = field(default_factory=ImageColumn)
    others: tuple[Column, ...] = ()
    size: int | None = None
    resize: Literal["crop", "squash"] = "crop"
    random_crop: bool = False
    random_flip: bool = False
    unit: str = "Row"
    split: str | None = None
    files: ImageFiles = field(default_factory=ImageFiles)

    @property
    def columns(self) -> tuple[Column, ...]:
        return (self.image, *self.others)

    def column_called(self, name: str) -> Column | None:
        """Return the column of this name in batches, if there is one."""
        return next((column for column in self.columns if column.name == name), None)

    def undecoded(self, rows: Rows) -> Rows:
        """Return rows with each column as it is to be read."""
        for column in self.columns:
            rows = column.undecoded(rows)
        return rows

    def informed(self, splits: Sequence[tuple[str, Rows]], files: ImageFiles, unit: str = "Row") -> RowReader:
        """Return the reader of the first of these splits, with what the (name, rows) of all say of their columns."""
        image, others = self.image.informed(splits), tuple(column.informed(splits) for column in self.others)
        return replace(self, image=image, others=others, unit=unit, split=splits[0][0], files=files)

    def read(
        self,
        row: Batch,
        row_number: int,
        rng: np.random.Generator | None = None,
        notes: dict[str, list[str]] | None = None,
    ) -> Batch:
        """Return one sample: `image` (C, H, W) float32, `index`, and the further columns.

        Args:
            rng: for augmentation; None for none.
            notes: takes what was done to images, by the name of their column in batches.

        Raises:
            ConfigurationError: a column cannot be read; the row is named.
        """
        reading = self._reading(row, row_number, rng, notes)
        image = self._open(row, reading)
        reading.view = self._drawn_view(image, reading)
        return self._sample(row, image, reading, keep=False)

    def views(self, row: Batch, row_number: int) -> list[Batch]:
        """Return what a cache keeps of a row, for each view that training may see: as it is and, where images are
        flipped, mirrored.
        """
        reading, samples = self._reading(row, row_number, None, None), []
        image = self._open(row, reading)
        for mirrored in (False, True) if self.random_flip else (False,):
            reading.view = replace(reading.view, mirrored=mirrored)
            samples.append(self._sample(row, image, reading, keep=True))
        return samples

    def place(self, row_number: int) -> str:
        """Return a row's name in messages."""
        return f"{self.unit} {row_number}" + (f" of split {self.split!r}" if self.split else "")

    def collate(self, samples: list[Batch]) -> Batch:
        """Return samples as a batch.

        Raises:
            ConfigurationError: tensors of different shapes; the rows are named.
        """
        batch: Batch = {}
        for name, first in samples[0].items():
            values = [sample[name] for sample in samples]
            column = self.column_called(name)
            if isinstance(first, Tensor) and (column is None or column.stacked):
                self._check_shapes(name, samples)
            batch[name] = default_collate(values) if column is None else column.collate(values)
        return batch

    def _check_shapes(self, name: str, samples: list[Batch]) -> None:
        first = samples[0][name].shape
        for sample in samples:
            if (shape := sample[name].shape) != first:
                setting = "channels" if len(shape) == 3 and shape[0] != first[0] else "image_size"
                raise ConfigurationError(
                    f"Row {sample['index']} has an {name} of shape {tuple(shape)}, row {samples[0]['index']} of "
                    f"{tuple(first)}; set the data's `{setting}`."
                )

    def _reading(
        self, row: Batch, row_number: int, rng: np.random.Generator | None, notes: dict[str, list[str]] | None
    ) -> Reading:
        number = int(row.get(ROW_NUMBER, row_number))
        view = View(self.size, self.resize)
        return Reading(
            self.place(number), number, view, rng=rng, files=self.files, notes={} if notes is None else notes
        )

    def _open(self, row: Batch, reading: Reading) -> Image | np.ndarray:
        with _naming(self.image, reading):
            image = self.image.open(row[self.image.column], reading)
        reading.image_size = (image.shape[2], image.shape[1]) if isinstance(image, np.ndarray) else image.size
        return image

    def _drawn_view(self, image: Image | np.ndarray, reading: Reading) -> View:
        rng, center = reading.rng, (0.5, 0.5)
        if rng is None:
            return reading.view
        is_cropped = (
            not isinstance(image, np.ndarray) and self.size is not None and image.size != (self.size, self.size)
        )
        if is_cropped and self.random_crop and self.resize == "crop":
            across, down = rng.random(2)
            center = (float(across), float(down))
        return View(self.size, self.resize, center, mirrored=self.random_flip and bool(rng.random() < 0.5))

    def _sample(self, row: Batch, image: Image | np.ndarray, reading: Reading, keep: bool) -> Batch:
        with _naming(self.image, reading):
            sample = {self.image.name: self.image.seen(image, reading.view), "index": reading.row}
        for column in self.others:
            with _naming(column, reading):
                sample[column.name] = (column.kept if keep else column.read)(row[column.column], reading)
        return sample


@contextmanager
def _naming(column: Column, reading: Reading) -> Iterator[None]:
    """Name the row and the column in whatever is raised."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:  # Pillow's formats raise many kinds, all meaning "not readable"
        raise ConfigurationError(
            f"{reading.place}, column {column.column!r}: the {column.name} cannot be read ({error}). Remove the row or "
            "repair it."
        ) from error
