"""Real images for a probe, from whatever a Trainer trains on: an ImageData, or any loaders of dicts or (image, …)
tuples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence, Sized
from dataclasses import replace

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.data.images import ImageData
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.lightning_private import datamodule_of
from ldmprobe.models.pixels import as_bytes, as_floats
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.real_data import DataSource, each_loader, read_beside, same_reading
from ldmprobe.probing.real_features import images_at
from ldmprobe.probing.sampling import Sampling
from ldmprobe.types import Batch

_LOOKED_AT = 64  # images by which data are known again


def prepared(trainer: L.Trainer, sampling: Sampling) -> Sampling:
    """Return the sampling with what its guidance takes of held-out images, read by rank zero for all ranks.

    Raises:
        ConfigurationError: it takes some, and there are none.
    """

    def held_out(num_images: int) -> Tensor:
        def make() -> Tensor:
            with evaluating([]):  # data may be shuffled
                batches = data_source(trainer).reference_images(num_images, held_out=True)
                return torch.cat([as_floats(batch["image"]) for batch in batches])

        return from_rank_zero(trainer, make)

    return replace(sampling, guidance=sampling.guidance.prepared(held_out))


def has_held_out(trainer: L.Trainer) -> bool:
    """Return whether there are held-out images."""
    return not isinstance(source := data_source(trainer), Loaders) or source.trainer.val_dataloaders is not None


def training_images_at(trainer: L.Trainer, places: Sequence[int]) -> Tensor:
    """Return the training images of these places among `reference_images`, (n, C, H, W) in [−1, 1]: an ImageData's row
    by row, those of other data from among all before them.
    """
    source = data_source(trainer)
    if isinstance(source, ImageData):
        return as_floats(source.training_images_at(places)["image"])
    return images_at(source.reference_images(max(places) + 1), places)


def data_fingerprint(trainer: L.Trainer, held_out: bool) -> str:
    """Return the fingerprint of the training data or the held-out data: of an ImageData's rows, or of the number of
    rows in loaders; and of the first 64 images, in 8 bits, as they come unshuffled.

    Raises:
        ConfigurationError: there are no held-out data.
    """
    source = data_source(trainer)
    rows: object = None
    if isinstance(source, ImageData):
        rows = (source.identity.held_out if held_out else source.identity.train).summary()
    with evaluating([]):  # whatever a data set draws is the same each time
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        if isinstance(source, Loaders):
            loaders = [_in_order(loader) for loader in source.loaders(held_out)]
            data = [loader.dataset for loader in loaders if isinstance(loader, DataLoader)]
            rows = [len(each) for each in data if isinstance(each, Sized)]
            batches = read_beside(loaders, _LOOKED_AT)
        else:
            batches = source.reference_images(_LOOKED_AT, held_out)
        images = [fingerprint(image) for batch in batches for image in as_bytes(as_floats(batch["image"]))]
    return fingerprint(rows, images)


class Loaders:
    """The loaders that a Trainer reads, as a `DataSource`: each is read beside training, from its beginning."""

    def __init__(self, trainer: L.Trainer) -> None:
        self.trainer = trainer

    def loaders(self, held_out: bool) -> Iterator[object]:
        """Yield them one by one, of however many there are."""
        loader = self.trainer.val_dataloaders if held_out else self.trainer.train_dataloader
        if loader is None:
            raise ConfigurationError(
                "There is no validation data for a probe's held-out images; give the Trainer a validation dataloader "
                "(and its module a validation_step), or DenoisingProbe its own: `DenoisingProbe(held_out=loader)`."
            )
        yield from each_loader(loader)

    def reference_batches(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        return read_beside(map(_whole, self.loaders(held_out)), num_images)

    def reference_images(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        return self.reference_batches(num_images, held_out)


def data_source(trainer: L.Trainer) -> DataSource:
    """Return the Trainer's datamodule if it is a `DataSource`, as ImageData is, or else its loaders."""
    data = datamodule_of(trainer)
    return data if isinstance(data, DataSource) else Loaders(trainer)


def _whole(loader: object) -> object:
    """Return the loader without the sampler by which Lightning gives each rank a part of its data."""
    if not isinstance(loader, DataLoader) or type(loader.sampler) is not DistributedSampler:
        return loader
    return same_reading(loader, batch_size=loader.batch_size, shuffle=loader.sampler.shuffle)


def _in_order(loader: object) -> object:
    """Return the loader without shuffling, where it is known how: a sampler's own generator has moved on since a run
    was begun.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        return loader
    return same_reading(loader, batch_size=loader.batch_size)
