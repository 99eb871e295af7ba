"""Real images for a probe, from whatever a Trainer trains on: an ImageData, or any loaders of dicts or (image, …)
tuples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.data.images import ImageData
from ldmprobe.errors import ConfigurationError
from ldmprobe.lightning_private import datamodule_of
from ldmprobe.models.pixels import as_floats
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.real_data import DataSource, each_loader, read_beside, same_reading
from ldmprobe.probing.real_features import images_at
from ldmprobe.probing.sampling import Sampling
from ldmprobe.types import Batch


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


class Loaders:
    """The loaders that a Trainer reads, as a `DataSource`: each is read beside training, from its beginning."""

    def __init__(self, trainer: L.Trainer) -> None:
        self.trainer = trainer

    def reference_batches(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        loader = self.trainer.val_dataloaders if held_out else self.trainer.train_dataloader
        if loader is None:
            raise ConfigurationError(
                "There is no validation data for a probe's held-out images; give the Trainer a validation dataloader "
                "(and its module a validation_step), or DenoisingProbe its own: `DenoisingProbe(held_out=loader)`."
            )
        yield from read_beside(map(_whole, each_loader(loader)), num_images)

    def reference_images(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        return self.reference_batches(num_images, held_out)


def data_source(trainer: L.Trainer) -> DataSource:
    """Return the Trainer's datamodule if it is a `DataSource`, as ImageData is, or else its loaders."""
    data = datamodule_of(trainer)
    return data if isinstance(data, DataSource) else Loaders(trainer)


def _whole(loader: Any) -> Any:
    """Return the loader without the sampler by which Lightning gives each rank a part of its data."""
    if not isinstance(loader, DataLoader) or type(loader.sampler) is not DistributedSampler:
        return loader
    return same_reading(loader, batch_size=loader.batch_size, shuffle=loader.sampler.shuffle)
