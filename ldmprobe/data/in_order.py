"""GivenRows: the first rows of a dataset in its own order, none held out, for what samples are to be made of."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Self

import torch
from torch import Tensor

from ldmprobe.data.image_files import files_of
from ldmprobe.data.rows import RowReader
from ldmprobe.data.sources import check_column, held_out_name, load_splits, only, without_own
from ldmprobe.types import Batch


@dataclass
class GivenRows:
    """Rows, as a conditioning meets data.

    Attributes:
        batches: all of them.
        num_classes: how many classes the labels have; None without labels.
        image_shape: (C, H, W) of the images.
        checked_captions: the captions of all rows.
    """

    batches: list[Batch]
    num_classes: int | None
    image_shape: tuple[int, ...] = field(init=False)
    checked_captions: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.image_shape = tuple(self.batches[0]["image"].shape[1:])
        self.checked_captions = [caption for batch in self.batches for caption in batch.get("caption", [])]

    @classmethod
    def read(cls, dataset: str, reader: RowReader, number: int, batch_size: int) -> Self:
        """Read the first ``number`` rows of a dataset, or all there are: of its validation or test split, if it has
        one, else of its first.

        Args:
            dataset: as ``ImageData``'s.

        Raises:
            ConfigurationError: no such dataset or column, or a row that cannot be read.
        """
        splits = load_splits(dataset)
        first = next(iter(splits))
        split = held_out_name(splits, first, None) or first
        rows = without_own(splits[split])
        for column in reader.columns:
            check_column(column.column, rows.column_names)
        rows = only(reader.undecoded(rows), reader.columns)
        reader = reader.informed([(split, rows)], files_of(dataset, {}, rows, None))
        samples = (reader.read(row, i) for i, row in enumerate(islice(rows, number)))
        batches = []
        while some := list(islice(samples, batch_size)):
            batches.append(reader.collate(some))
        labels = reader.column_called("label")
        return cls(batches, None if labels is None else labels.classes)

    @classmethod
    def of(cls, images: Tensor, **columns: Tensor) -> Self:
        """Return rows of images (N, C, H, W) in [−1, 1], with these further columns alone."""
        return cls([{"image": images, "index": torch.arange(len(images)), **columns}], None)

    def with_hole(self, name: str, hole: Tensor) -> Self:
        """Return the same rows, all with this mask (H, W) in their column ``name``."""
        batches = [{**batch, name: hole.expand(len(batch["image"]), *hole.shape)} for batch in self.batches]
        return replace(self, batches=batches)

    @property
    def images(self) -> Tensor:
        """All images, (N, C, H, W) in [−1, 1]."""
        return torch.cat([batch["image"] for batch in self.batches])

    @property
    def batch_names(self) -> Collection[str]:
        """The names in batches."""
        return tuple(self.batches[0])

    def reference_batches(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        """Yield all rows."""
        return iter(self.batches)
