"""A probe reads other people's loaders as they read themselves, and takes what it needs."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info

from ldmprobe.probing.real_data import each_loader, read_beside
from tests.helpers import refused


class Opened(Dataset):
    """Readable only in a worker that has opened it, as a file of HDF5 is."""

    file: Tensor | None = None

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Tensor:
        assert self.file is not None
        return self.file[i]


def open_in_worker(worker: int) -> None:
    get_worker_info().dataset.file = torch.arange(8.0).view(8, 1, 1, 1)


class Shards(IterableDataset):
    """Each worker reads the shard of its number."""

    def __iter__(self) -> Any:
        shard = get_worker_info().id
        return (torch.full((1, 1, 1), float(10 * shard + i)) for i in range(2))


def images(loaders: Any, number: int) -> list[float]:
    return torch.cat([batch["image"] for batch in read_beside(each_loader(loaders), number)]).flatten().tolist()


def test_workers_begin_as_the_loaders_own_do():
    assert images(DataLoader(Opened(), 3, num_workers=1, worker_init_fn=open_in_worker), 7) == [*range(7)]
    assert images(DataLoader(Shards(), 2, num_workers=2), 4) == [0.0, 1.0, 10.0, 11.0]


def test_what_is_no_collection_of_samples_is_left_alone():
    batch = {
        "image": torch.ones(4, 1, 2, 2),
        "caption": list("abcd"),
        "meta": {"ids": torch.arange(4), "scale": 2.0},
        "name": "x",
    }
    (read,) = read_beside([[batch]], 3)
    assert (len(read["image"]), read["caption"], read["name"]) == (3, list("abc"), "x")
    assert (read["meta"]["ids"].tolist(), read["meta"]["scale"]) == ([0, 1, 2], 2.0)


def test_text_beside_an_image_is_its_caption_and_a_number_its_label():
    image = torch.ones(2, 1, 2, 2)
    assert next(read_beside([[(image, ["a", "b"])]], 2))["caption"] == ["a", "b"]
    assert next(read_beside([[(image, torch.tensor([1, 0]), {"path": "x"})]], 2))["label"].tolist() == [1, 0]


def test_loaders_by_name_are_read_one_after_another_and_those_without_images_left_out():
    one, two = (DataLoader(TensorDataset(torch.full((2, 1, 1, 1), value)), 2) for value in (1.0, 2.0))
    text = DataLoader(["a", "b"], 2)
    assert images({"text": text, "pairs": [one, {"more": two}]}, 3) == [1.0, 1.0, 2.0]
    with refused("cannot read batches of list"):
        list(read_beside(each_loader({"text": text}), 3))


def test_reading_leaves_the_random_numbers_of_the_loader_alone():
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(torch.arange(8.0).view(8, 1, 1, 1)), 4, shuffle=True, generator=generator)
    before = generator.get_state()
    first = images(loader, 8)
    assert torch.equal(generator.get_state(), before)
    assert images(loader, 8) == first
