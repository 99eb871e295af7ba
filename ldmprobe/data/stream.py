"""Endless training streams in which batch k is a function of (seed, k) alone: reproducible, and resumable anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, Protocol

import numpy as np
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    get_worker_info,
)

from ldmprobe.types import Batch, Rows, is_table


class Reader(Protocol):
    """Reads the rows of a dataset, or of a cache."""

    def read(self, row: Any, row_number: int, rng: np.random.Generator | None = None) -> Batch: ...

    def collate(self, samples: list[Batch]) -> Batch: ...


class ShuffledStream(Dataset):
    """Position p of the stream is row `permutation(seed, p // n)[p % n]`, augmented with randomness of (seed, p)."""

    def __init__(self, rows: Rows, reader: Reader, seed: int) -> None:
        self.rows, self.reader, self.seed = rows, reader, seed
        self._pass = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def __getitem__(self, positions: list[int]) -> Batch:
        return self.reader.collate([self._sample(position) for position in positions])

    def _sample(self, position: int) -> Batch:
        which_pass, offset = divmod(position, len(self.rows))
        if which_pass != self._pass:
            self._permutation = np.random.default_rng((self.seed, which_pass)).permutation(len(self.rows))
            self._pass = which_pass
        row = int(self._permutation[offset])
        return self.reader.read(self.rows[row], row, np.random.default_rng((self.seed, which_pass, offset)))


class StreamPositions(DistributedSampler, SequentialSampler):
    """Batch k, k + 1, … without end, k being what `next_batch` says when an iteration begins: the stream positions of
    this rank's part of each.

    To Lightning a DistributedSampler, so that it does not put its own in its place, and a SequentialSampler, so that it
    takes the order of the same batches over and over (`overfit_batches`) as it is.
    """

    def __init__(self, batch_size: int, next_batch: Callable[[], int], rank: int, world_size: int) -> None:
        self.batch_size, self.next_batch = batch_size, next_batch
        self.rank, self.num_replicas = rank, world_size
        self.epoch = 0

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        k = self.next_batch()
        while True:
            start = (k * self.num_replicas + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))
            k += 1

    def __len__(self) -> int:
        raise TypeError("a training stream has no end")


class HubStream(IterableDataset):
    """A streaming dataset, shuffled anew in each pass through a buffer, without end; sharded over ranks (by the caller,
    with `split_dataset_by_node`) and over workers (by `datasets` itself).
    """

    def __init__(self, rows: Rows, reader: Reader, seed: int, batch_size: int, buffer_size: int, rank: int = 0) -> None:
        self.rows, self.reader, self.seed, self.batch_size = rows, reader, seed, batch_size
        self.buffer_size, self.rank = buffer_size, rank

    def __iter__(self) -> Iterator[Batch]:
        rows = self.rows.shuffle(seed=self.seed, buffer_size=self.buffer_size) if self.buffer_size > 1 else self.rows
        worker = get_worker_info()
        part = (self.seed, self.rank, worker.id if worker else 0)
        samples: list[Batch] = []
        which_pass = 0
        while True:
            rows.set_epoch(which_pass)
            count = 0
            for count, row in enumerate(rows, 1):
                rng = np.random.default_rng((*part, which_pass, count))
                samples.append(self.reader.read(row, count - 1, rng))
                if len(samples) == self.batch_size:
                    yield self.reader.collate(samples)
                    samples = []
            if count == 0:  # fewer shards than workers: this one has nothing to read
                return
            which_pass += 1


class SkippingLoader:
    """A loader that begins with the batch that `next_batch` says: it goes on where it is, and where that is another
    place, reads anew from the first, the exact (if slow) way to resume a stream that cannot seek.
    """

    def __init__(self, loader: DataLoader, next_batch: Callable[[], int]) -> None:
        self.loader, self.next_batch = loader, next_batch
        self._batches: Iterator[Batch] | None = None
        self._number = 0  # of the batch that is read next

    def __iter__(self) -> Iterator[Batch]:
        first = self.next_batch()
        if self._batches is None or self._number != first:
            self._batches, self._number = iter(self.loader), 0
            for _ in range(first):
                next(self)
        return self

    def __next__(self) -> Batch:
        assert self._batches is not None
        self._number += 1
        return next(self._batches)


def in_fixed_order(rows: Rows, reader: Reader, num_rows: int) -> Iterator[Batch]:
    """Yield batches of `num_rows` rows, or of all there are, in an order that never changes: that of
    `RowsInFixedOrder`, or a stream's first rows as they come, which may be sorted.
    """
    if is_table(rows):
        samples: Iterator[Batch] = (reader.read(rows[int(i)], int(i)) for i in _fixed_order(rows)[:num_rows])
    else:
        samples = (reader.read(row, i) for i, row in enumerate(islice(rows, num_rows)))
    while batch := list(islice(samples, 256)):
        yield reader.collate(batch)


def at_places(rows: Rows, reader: Reader, places: Sequence[int]) -> Batch:
    """Return the rows of these places in the order of `in_fixed_order`, without reading others; a stream passes over
    those before them.
    """
    if is_table(rows):
        return reader.collate([reader.read(rows[int(i)], int(i)) for i in _fixed_order(rows)[places]])
    first = enumerate(islice(rows, max(places) + 1))
    found = {i: reader.read(row, i) for i, row in first if i in places}
    return reader.collate([found[place] for place in places])


def _fixed_order(rows: Sized) -> np.ndarray:
    return np.random.default_rng(0).permutation(len(rows))


class RowsInFixedOrder(Dataset):
    """The rows of a split, without augmentation, in an order that never changes and is that of no column: the first
    batches are a fair sample, also where the split is sorted by class. A stream's (few) held-out rows are read into
    memory, so that they have such an order, too.
    """

    def __init__(self, rows: Rows, reader: Reader) -> None:
        self.rows = rows if is_table(rows) else list(rows)
        self.reader, self._order = reader, _fixed_order(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Batch:
        row = int(self._order[i])
        return self.reader.read(self.rows[row], row)
