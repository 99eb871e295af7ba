"""Real images and latents for a probe, from whatever a Trainer trains on: an ImageData, or any loaders of dicts or
(image, …) tuples.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import replace

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from ldmprobe.callbacks.probe_callback import run_directory
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.data.images import ImageData
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.lightning_private import callbacks_of, datamodule_of
from ldmprobe.models.codec import IMAGES
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.pixels import as_bytes, as_floats
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics, latents_of
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.real_data import (
    DataSource,
    FirstImages,
    each_loader,
    loaders_in,
    read_beside,
    reference_at,
    same_reading,
)
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
        images = [fingerprint(image) for batch in batches for image in _rounded(batch)]
    return fingerprint(rows, images)


def _rounded(batch: Batch) -> Tensor:
    """Return images in 8 bits; where there are only latents of them, these."""
    if "image" in batch:
        return as_bytes(as_floats(batch["image"]))
    return torch.as_tensor(next(batch[name] for name in IMAGES if name in batch))


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


class KeptLatents:
    """Real latents of one kind of data with their conditions, encoded by rank zero for all ranks at the first probe.
    Where text encoders are trained, conditions change, and all but the reference is encoded anew at each probe.

    Args:
        num_images: training images, or held-out ones, as many as there are up to this.
        num_reference: training images that the reference is fitted on; of the ``num_reference`` of all callbacks the
            largest counts, as they share it.
        held_out: batches of held-out images; default: of the data.
        data: whose images these are; default: what the Trainer trains on.
        name: of the reference's file in the run's directory.
    """

    def __init__(
        self,
        num_images: int = 0,
        num_reference: int = 0,
        held_out: Iterable[object] | None = None,
        data: ImageData | None = None,
        name: str = "reference",
    ) -> None:
        self._num_images, self._num_reference, self._batches = num_images, num_reference, held_out
        self._data, self._name = data, name
        self._reference: LatentStatistics | None = None
        self._kept: dict[bool, HeldOut] = {}  # by whether they are held out

    def reference(self, trainer: L.Trainer, model: DiffusionModel) -> LatentStatistics:
        """Return the reference of the run's directory; where there is none, one that is fitted and put there."""
        if self._reference is None:
            self._reference = from_rank_zero(trainer, lambda: self._read_or_fit(trainer, model))
        return self._reference

    def held_out(self, trainer: L.Trainer, model: DiffusionModel) -> HeldOut:
        """Return held-out latents.

        Raises:
            ConfigurationError: there are none.
        """
        return self._encoded(trainer, model, held_out=True)

    def training(self, trainer: L.Trainer, model: DiffusionModel) -> HeldOut:
        """Return training latents."""
        return self._encoded(trainer, model, held_out=False)

    def _encoded(self, trainer: L.Trainer, model: DiffusionModel, held_out: bool) -> HeldOut:
        def make() -> HeldOut:
            if held_out and self._batches is not None:
                batches = read_beside(loaders_in(self._batches), self._num_images)
            else:
                batches = iter((self._data or data_source(trainer)).reference_batches(self._num_images, held_out))
            with evaluating(model.modules):
                return HeldOut.encode(model.codec, model.conditioning, batches)

        if held_out not in self._kept or model.conditioning.trained:
            self._kept[held_out] = from_rank_zero(trainer, make)
        return self._kept[held_out]

    def _read_or_fit(self, trainer: L.Trainer, model: DiffusionModel) -> LatentStatistics:
        path, source = run_directory(trainer) / f"{self._name}.safetensors", self._data or data_source(trainer)
        number = max(self._num_reference, *(vars(each).get("num_reference", 0) for each in callbacks_of(trainer)))
        known = source.identity.train if isinstance(source, ImageData) else None
        rows = known or FirstImages(data_fingerprint(trainer, held_out=False))
        with evaluating(model.modules):
            reference = reference_at(
                path, model, lambda: latents_of(model.codec, source.reference_batches(number)), rows
            )
        if not path.exists():
            reference.save(path)
            # As a resumed run will: fitted tensors have other strides, and so other last bits.
            reference = LatentStatistics.load(path)
        return reference


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
