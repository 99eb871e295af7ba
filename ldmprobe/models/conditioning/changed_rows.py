"""ChangedRows: data as a conditioning, or one part of several, is shown it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ldmprobe.models.conditioning.base import Conditioning
from ldmprobe.models.conditioning.protocols import ConditioningData
from ldmprobe.types import Batch


class ChangedRows:
    """Data each of whose batches is changed.

    Args:
        data: the data.
        change: returns what becomes of a batch.
        added: names that batches have by it.
    """

    def __init__(self, data: ConditioningData, change: Callable[[Batch], Batch], added: Iterable[str] = ()) -> None:
        self.data, self.change, self.batch_names = data, change, (*data.batch_names, *added)
        self.num_classes, self.image_shape = data.num_classes, data.image_shape
        self.checked_captions = data.checked_captions

    def reference_batches(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        """Yield the same rows, changed."""
        return map(self.change, self.data.reference_batches(num_images, held_out))


def with_assumed_columns(data: ConditioningData, conditioning: Conditioning) -> ChangedRows:
    """Return data with what ``conditioning`` assumes of the columns that it lacks, such as one caption for all rows."""
    assumed = conditioning.assumed(data)

    def completed(batch: Batch) -> Batch:
        return {**batch, **{name: [value] * len(batch["index"]) for name, value in assumed.items()}}

    return ChangedRows(data, completed, assumed)
