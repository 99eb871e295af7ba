"""Real data for a probe: any loader's batches, read beside training, and the reference that is fitted on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ldmprobe.data.identity import KnownRows
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.types import Batch, PlainValues


@runtime_checkable
class DataSource(Protocol):
    """Real data for probes: the first images of the training data or of the held-out data, the same at every call.

    A LightningDataModule that has these methods is read by them, as ImageData is; other data by the Trainer's loaders.
    """

    def reference_batches(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        """Yield batches of ``num_images`` in all, with what the codec and the conditioning read: images, or latents
        from a cache.
        """
        ...

    def reference_images(self, num_images: int, held_out: bool = False) -> Iterator[Batch]:
        """Yield the same batches with ``image``, also where training reads latents from a cache."""
        ...


@dataclass(frozen=True)
class FirstImages:
    """Training data of which no more is known than their number of rows and first images, by a fingerprint of these."""

    fingerprint: str

    def summary(self) -> PlainValues:
        """Plain values for files."""
        return {"first": self.fingerprint}

    def changes(self, theirs: PlainValues, name: str, if_none: str) -> list[str]:
        """Return in words that these data differ from those of a summary, or come in another order."""
        other = f"the number of {name} rows has changed, or others of their images come first"
        return [] if theirs == self.summary() else [other]


def reference_at(
    path: Path | None,
    model: DiffusionModel,
    latents: Callable[[], Tensor],
    rows: KnownRows | FirstImages | None = None,
) -> LatentStatistics:
    """The reference kept at ``path``; where there is none, or no path, one fitted on ``latents()`` (N, C, H, W), for
    the caller to save.

    Args:
        rows: the data that latents are of, where they are known. That they have changed a little is told, and the
            reference is kept, so that all records of a run are measured alike.

    Raises:
        ConfigurationError: it is damaged, or of latents of another codec or shape than ``model``'s, or of other data.
    """
    codec = fingerprint(model.codec.description)
    if path is None or not path.exists():
        return replace(LatentStatistics.fit(latents(), codec), data={} if rows is None else rows.summary())
    reference = LatentStatistics.load(path)
    if rows is not None and reference.data:
        changes = ["they came in another way"]
        if rows.summary().keys() == reference.data.keys():
            if_none = f"{path} is of other data; choose another run directory."
            changes = rows.changes(reference.data, "training", if_none)
        if changes:
            warnings.warn(f"{path} is of the data as they were, and is kept: {'; '.join(changes)}.", stacklevel=2)
    if reference.codec != codec:
        raise ConfigurationError(
            f"{path} was fitted on latents of another codec than this model's (or of another latent scale); choose "
            "another run directory."
        )
    if tuple(reference.basis.shape) != tuple(model.latent_shape):
        raise ConfigurationError(
            f"{path} is of latents of shape {tuple(reference.basis.shape)}, this model's are "
            f"{tuple(model.latent_shape)}; choose another run directory."
        )
    return reference


def read_beside(loaders: Iterable[object], num_images: int) -> Iterator[Batch]:
    """Read the first ``num_images`` of the loaders' batches, as dicts with ``image``, leaving training's own reading of
    them alone.

    Loaders whose batches have no images are left out, as long as there is one with images.

    Raises:
        ConfigurationError: batches that are no dict with ``image``, tensor or (image, label).
    """
    left, unreadable = num_images, None
    for loader in loaders:
        try:
            for batch in map(_as_dict, _beside(loader)):
                yield {name: _first(value, left) for name, value in batch.items()}
                left -= len(batch["image"])
                if left <= 0:
                    return
        except _NoImages as error:
            unreadable = unreadable or error
    if unreadable is not None and left == num_images:
        raise unreadable


class _NoImages(ConfigurationError):
    """A batch has none."""


def each_loader(loaders: object) -> Iterator[object]:
    """Yield the loaders in dictionaries, lists and tuples of them, as Lightning takes them."""
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        for loader in loaders:
            yield from each_loader(loader)
    else:
        yield loaders


def loaders_in(data: object) -> list[object]:
    """Return the loaders of data that are batches or a loader of them, or several by name."""
    return list(data.values()) if isinstance(data, dict) else [data]


def same_reading(loader: DataLoader[object], **order: Any) -> DataLoader[object]:
    """Return a loader of the same data that reads them in the same way, with as many workers, which begin in the same
    way, but in another order. The workers end with it, and draw random numbers of their own.
    """
    if loader.num_workers:
        order |= {"prefetch_factor": loader.prefetch_factor, "multiprocessing_context": loader.multiprocessing_context}
    return DataLoader(
        loader.dataset,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        timeout=loader.timeout,
        generator=torch.Generator().manual_seed(0),
        **order,
    )


@runtime_checkable
class _HasSampler(Protocol):
    sampler: object


@runtime_checkable
class _HasGenerator(Protocol):
    generator: object


def _beside(loader: Any) -> Iterator[object]:
    """To iterate over the loader itself would restart the persistent workers that training reads from, and move the
    generators of its order on.
    """
    if not isinstance(loader, DataLoader):
        yield from loader
        return
    order: PlainValues = {"batch_sampler": loader.batch_sampler}
    if isinstance(loader.dataset, IterableDataset):
        order = {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    elif loader.batch_sampler is None:
        order = {"sampler": loader.sampler, "batch_size": None}
    parts: list[object] = [loader, loader.sampler, loader.batch_sampler]
    if isinstance(loader.batch_sampler, _HasSampler):
        parts.append(loader.batch_sampler.sampler)
    drawn_by = [part.generator for part in parts if isinstance(part, _HasGenerator)]
    generators = [generator for generator in drawn_by if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        yield from same_reading(loader, **order)
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _first(value: object, number: int) -> object:
    """Return what belongs to the first samples of a batch; what is no collection of samples stays as it is."""
    if isinstance(value, dict):
        return {name: _first(part, number) for name, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)) or (isinstance(value, Tensor) and value.ndim > 0):
        return value[:number]
    return value


def _as_dict(batch: object) -> PlainValues:
    if isinstance(batch, dict) and "image" in batch:
        return batch
    if isinstance(batch, Tensor):
        return {"image": batch}
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], Tensor):
        named = {"image": batch[0]}
        if len(batch) > 1:
            texts = isinstance(batch[1], (list, tuple)) and all(isinstance(text, str) for text in batch[1])
            named["caption" if texts else "label"] = batch[1]
        return named
    raise _NoImages(
        f"A probe cannot read batches of {type(batch).__name__}; expected a dict with 'image', a tensor, or (image, "
        "label)."
    )
