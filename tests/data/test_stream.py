"""Batch k of a training stream is a function of (seed, k)."""

from itertools import chain, islice

import pytest
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from ldmprobe.data.builtin import gaussian
from ldmprobe.data.stream import (
    HubStream,
    RowsInFixedOrder,
    ShuffledStream,
    SkippingLoader,
    StreamPositions,
    at_places,
    in_fixed_order,
)
from tests.helpers import row_reader

N = 20
READER = row_reader()


@pytest.fixture(scope="module")
def table():
    return gaussian(num_images=N, channels=1, size=2)


@pytest.fixture(scope="module")
def numbers(table) -> dict[tuple, int]:
    """Row number by content."""
    return {tuple(torch.tensor(row["image"]).flatten().tolist()): i for i, row in enumerate(table)}


def _rows(batch, numbers) -> list[int]:
    return [numbers[tuple(image.flatten().tolist())] for image in batch["image"]]


def _loader(table, batch_size=3, first_batch=0, rank=0, world_size=1, seed=0, **options) -> DataLoader:
    positions = StreamPositions(batch_size, lambda: first_batch, rank, world_size)
    return DataLoader(ShuffledStream(table, READER, seed), sampler=positions, batch_size=None, **options)


def _indices(loader, num_batches: int) -> list[list[int]]:
    return [batch["index"].tolist() for batch in islice(loader, num_batches)]


def test_each_pass_over_the_data_visits_every_row_once_in_another_order(table):
    stream = [*chain(*_indices(_loader(table), 20))]  # 60 = 3 passes; batches run across their ends
    passes = [stream[i : i + N] for i in (0, N, 2 * N)]
    assert all(sorted(one) == list(range(N)) for one in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_the_index_is_the_row(table, numbers):
    for batch in islice(_loader(table), 14):
        assert _rows(batch, numbers) == batch["index"].tolist()


def test_the_order_is_a_function_of_the_seed(table):
    assert _indices(_loader(table, seed=5), 10) == _indices(_loader(table, seed=5), 10)
    assert _indices(_loader(table, seed=5), 10) != _indices(_loader(table, seed=6), 10)


def test_two_workers_give_the_batches_of_none(table):
    assert _indices(_loader(table, num_workers=2), 15) == _indices(_loader(table), 15)


@pytest.mark.parametrize("first_batch", [1, 6, 7, 1000])
def test_a_stream_resumes_at_any_batch(table, first_batch):
    from_the_start = _indices(_loader(table), first_batch + 5)
    assert _indices(_loader(table, first_batch=first_batch), 5) == from_the_start[first_batch:]


def test_two_ranks_together_are_the_stream_of_one_process(table):
    alone = _indices(_loader(table, batch_size=6), 10)
    ranks = [_indices(_loader(table, batch_size=3, rank=rank, world_size=2), 10) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == alone


def test_augmentation_is_a_function_of_seed_and_position():
    from ldmprobe.data.builtin import digits

    reader = row_reader(size=6, random_crop=True, random_flip=True)
    rows = digits().select(range(10))

    def images(positions, seed=0):
        return ShuffledStream(rows, reader, seed)[positions]["image"]

    assert torch.equal(images([3, 14, 25]), torch.cat([images([3]), images([14]), images([25])]))
    stream = ShuffledStream(rows, reader, 0)
    first, second = stream[list(range(10))], stream[list(range(10, 20))]
    by_row = [dict(zip(b["index"].tolist(), b["image"], strict=True)) for b in (first, second)]
    assert sum(torch.equal(by_row[0][i], by_row[1][i]) for i in range(10)) < 8  # drawn anew in each pass


class Remembered:
    """A reader that remembers which rows it has read."""

    def __init__(self):
        self.read_rows, self.collate = [], READER.collate

    def read(self, row, number, rng=None):
        self.read_rows.append(number)
        return READER.read(row, number, rng)


def test_rows_of_places_in_the_fixed_order_are_read_alone(table):
    places = [11, 2, 11]
    for rows in (table, table.to_iterable_dataset(num_shards=2)):
        reader = Remembered()
        batch = at_places(rows, reader, places)
        (whole,) = in_fixed_order(rows, READER, 15)
        assert torch.equal(batch["image"], whole["image"][places])
        assert set(reader.read_rows) == set(batch["index"].tolist())


def test_held_out_rows_are_read_in_the_fixed_order_of_tables_and_streams_alike(table):
    (whole,) = in_fixed_order(table, READER, N)
    for rows in (table, table.to_iterable_dataset(num_shards=2)):
        held_out = RowsInFixedOrder(rows, READER)
        batch = READER.collate([held_out[i] for i in range(len(held_out))])
        assert torch.equal(batch["index"], whole["index"])
        assert torch.equal(batch["image"], whole["image"])
    assert sorted(whole["index"].tolist()) == list(range(N)) != whole["index"].tolist()


# --- streaming datasets -----------------------------------------------------------------------------------------------


def _hub(table, seed=0, batch_size=2, buffer_size=8, rank=0, world_size=1, shards=4) -> HubStream:
    rows = split_dataset_by_node(table.to_iterable_dataset(num_shards=shards), rank=rank, world_size=world_size)
    return HubStream(rows, READER, seed, batch_size, buffer_size)


def _hub_rows(stream, numbers, num_batches) -> list[list[int]]:
    return [_rows(batch, numbers) for batch in islice(stream, num_batches)]


def test_each_pass_over_a_hub_stream_visits_every_row_once_in_another_order(table, numbers):
    stream = [*chain(*_hub_rows(_hub(table), numbers, 20))]
    first, second = stream[:N], stream[N:]
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second
    assert first != list(range(N))


def test_a_hub_stream_is_a_function_of_its_seed(table, numbers):
    first, again, other = (_hub_rows(_hub(table, seed), numbers, 15) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("shards", [4, 1])
def test_two_ranks_share_each_pass_of_a_hub_stream(table, numbers, shards):
    ranks = [_hub_rows(_hub(table, rank=rank, world_size=2, shards=shards), numbers, 5) for rank in range(2)]
    assert sorted(chain(*ranks[0], *ranks[1])) == list(range(N))


@pytest.mark.parametrize("settings", [{}, {"shards": 1}])  # the latter fewer than workers
def test_two_workers_share_each_pass_of_a_hub_stream(table, numbers, settings):
    loader = DataLoader(_hub(table, batch_size=5, **settings), batch_size=None, num_workers=2)
    assert sorted(chain(*_hub_rows(loader, numbers, 4))) == list(range(N))


def test_a_hub_stream_resumes_by_skipping(table, numbers):
    loader = DataLoader(_hub(table), batch_size=None)
    assert _hub_rows(SkippingLoader(loader, lambda: 13), numbers, 9) == _hub_rows(loader, numbers, 22)[13:]
