"""Real images for a probe, from whatever a Trainer trains on: an ImageData, or any loaders of dicts or (image, …) tuples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from ldmprobe.callbacks.probe_callback import run_directory
from ldmprobe.callbacks.rank_zero import from_rank_zero
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.record import fingerprint
from ldmprobe.probing.reference import Reference, encode_images


def reference_of(trainer: L.Trainer, model: DiffusionModel, num_images: int) -> Reference:
    """The run's reference: read from ``reference.safetensors`` in its directory, or fitted on training images and put there; by rank
    zero, for all ranks."""
    path = run_directory(trainer) / "reference.safetensors"
    codec = fingerprint(model.codec.description)

    def make() -> Reference:
        if path.exists():
            return _checked(Reference.load(path), path, codec, model)
        with evaluating(model.modules):
            batches = image_batches(trainer, num_images, held_out=False)
            reference = Reference.fit(encode_images(model.codec, (batch["image"] for batch in batches)), codec)
        reference.save(path)
        return reference

    return from_rank_zero(trainer, make)


def _checked(reference: Reference, path: Path, codec: str, model: DiffusionModel) -> Reference:
    if reference.codec != codec:
        raise ConfigurationError(
            f"{path} was fitted on latents of another codec than this model's (or of another latent scale); choose another run "
            "directory."
        )
    if tuple(reference.basis.shape) != tuple(model.latent_shape):
        raise ConfigurationError(
            f"{path} is of latents of shape {tuple(reference.basis.shape)}, this model's are {tuple(model.latent_shape)}; choose "
            "another run directory."
        )
    return reference


def held_out_of(
    trainer: L.Trainer, model: DiffusionModel, num_images: int, batches: Iterable[Any] | None = None
) -> HeldOut:
    """Held-out images, encoded, with their conditions: of ``batches`` where they are given, else the Trainer's validation data; by
    rank zero, for all ranks.

    Raises:
        ConfigurationError: there are none.
    """
    chosen = image_batches(trainer, num_images, held_out=True)
    if batches is not None:
        chosen = _limited((_as_dict(batch) for batch in batches), num_images)

    def make() -> HeldOut:
        with evaluating(model.modules):
            return HeldOut.encode(model.codec, model.conditioning, chosen)

    return from_rank_zero(trainer, make)


def has_held_out(trainer: L.Trainer) -> bool:
    """Whether :func:`held_out_of` will find any."""
    data: Any = getattr(trainer, "datamodule", None)
    return hasattr(data, "reference_batches") or trainer.val_dataloaders is not None


def image_batches(trainer: L.Trainer, num_images: int, held_out: bool) -> Iterator[dict[str, Any]]:
    data: Any = getattr(trainer, "datamodule", None)
    if hasattr(data, "reference_batches"):
        yield from data.reference_batches(num_images, held_out)
        return
    loader: Any = trainer.val_dataloaders if held_out else trainer.train_dataloader
    if loader is None:
        raise ConfigurationError(
            "DenoisingProbe found no validation data; give the Trainer a validation dataloader (and its module a validation_step), or "
            "the probe its own: `DenoisingProbe(held_out=loader)`."
        )
    loaders = loader if isinstance(loader, (list, tuple)) else [loader]
    yield from _limited((_as_dict(batch) for one in loaders for batch in _aside(_whole(one))), num_images)


def _whole(loader: Any) -> Any:
    """The loader without the sampler by which Lightning gives each rank a part of its data."""
    sampler = getattr(loader, "sampler", None)
    if type(sampler) is not DistributedSampler:
        return loader
    return DataLoader(
        loader.dataset, batch_size=loader.batch_size, shuffle=sampler.shuffle, collate_fn=loader.collate_fn
    )


def _aside(loader: Any) -> Iterator[Any]:
    """The loader's batches, read beside training. To iterate over the loader itself would restart the persistent workers that training
    reads from, and move the generators of its order on."""
    if not isinstance(loader, DataLoader):
        yield from loader
        return
    order: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
    if isinstance(loader.dataset, IterableDataset):
        order = {"batch_size": loader.batch_size}
    elif loader.batch_sampler is None:
        order = {"sampler": loader.sampler, "batch_size": None}
    parts: tuple[Any, ...] = (
        loader,
        loader.sampler,
        loader.batch_sampler,
        getattr(loader.batch_sampler, "sampler", None),
    )
    generators = [part.generator for part in parts if isinstance(getattr(part, "generator", None), torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        yield from DataLoader(loader.dataset, collate_fn=loader.collate_fn, **order)
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _limited(batches: Iterable[dict[str, Any]], num_images: int) -> Iterator[dict[str, Any]]:
    left = num_images
    for batch in batches:
        yield {name: value[:left] for name, value in batch.items()}
        left -= len(batch["image"])
        if left <= 0:
            return


def _as_dict(batch: Any) -> dict[str, Any]:
    if isinstance(batch, dict) and "image" in batch:
        return batch
    if isinstance(batch, torch.Tensor):
        return {"image": batch}
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], torch.Tensor):
        return {"image": batch[0], **({"label": batch[1]} if len(batch) > 1 else {})}
    raise ConfigurationError(
        f"A probe cannot read batches of {type(batch).__name__}; expected a dict with 'image', a tensor, or (image, label)."
    )
