"""AssumedColumns: data as a conditioning takes it to be where columns that it reads are lacking."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Self

from ldmprobe.models.conditioning.base import Conditioning
from ldmprobe.models.conditioning.protocols import ConditioningData
from ldmprobe.types import Batch, PlainValues


class AssumedColumns:
    """Data whose rows all have the same value in columns that it lacks, such as a caption.

    Args:
        data: the data.
        assumed: these values, by name.
    """

    def __init__(self, data: ConditioningData, assumed: PlainValues) -> None:
        self.data, self.assumed = data, assumed
        self.num_classes, self.image_shape, self.checked_captions = (
            data.num_classes,
            data.image_shape,
            data.checked_captions,
        )

    @classmethod
    def of(cls, data: ConditioningData, conditioning: Conditioning) -> Self:
        """Return data with what ``conditioning`` assumes of it."""
        return cls(data, conditioning.assumed(data))

    @property
    def batch_names(self) -> Collection[str]:
        """The names in batches."""
        return (*self.data.batch_names, *self.assumed)

    def reference_batches(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        """Yield the same rows, with what is assumed of them."""
        for batch in self.data.reference_batches(num_images, held_out):
            yield {**batch, **{name: [value] * len(batch["index"]) for name, value in self.assumed.items()}}
