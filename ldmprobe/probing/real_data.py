"""Real data for a probe: any loader's batches, read beside training, and the reference that is fitted on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ldmprobe.data.identity import KnownRows
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.record import fingerprint
from ldmprobe.probing.reference import Reference


def reference_at(
    path: Path, model: DiffusionModel, latents: Callable[[], Tensor], rows: KnownRows | None = None
) -> Reference:
    """The reference kept at ``path``; where there is none, one fitted on ``latents()`` (N, C, H, W), for the caller to save.

    Args:
        rows: the data that latents are of, where they are known. That they have changed a little is told, and the
            reference is kept, so that all records of a run are measured alike.

    Raises:
        ConfigurationError: it is damaged, or of latents of another codec or shape than ``model``'s, or of other data.
    """
    codec = fingerprint(model.codec.description)
    if not path.exists():
        return replace(Reference.fit(latents(), codec), data={} if rows is None else rows.summary())
    reference = Reference.load(path)
    if rows is not None and reference.data:
        changes = rows.changes(reference.data, "training", f"{path} is of other data; choose another run directory.")
        if changes:
            warnings.warn(f"{path} is of the data as they were, and is kept: {'; '.join(changes)}.", stacklevel=2)
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


def read_beside(loaders: Iterable[Any], num_images: int) -> Iterator[dict[str, Any]]:
    """The first ``num_images`` of the loaders' batches, as dicts with ``image``; training's own reading of them is left alone.

    Raises:
        ConfigurationError: batches that are no dict with ``image``, tensor or (image, label).
    """
    left = num_images
    for batch in (_as_dict(batch) for loader in loaders for batch in _beside(loader)):
        yield {name: value[:left] for name, value in batch.items()}
        left -= len(batch["image"])
        if left <= 0:
            return


def _beside(loader: Any) -> Iterator[Any]:
    """To iterate over the loader itself would restart the persistent workers that training reads from, and move the generators of its
    order on."""
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


def _as_dict(batch: Any) -> dict[str, Any]:
    if isinstance(batch, dict) and "image" in batch:
        return batch
    if isinstance(batch, Tensor):
        return {"image": batch}
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], Tensor):
        return {"image": batch[0], **({"label": batch[1]} if len(batch) > 1 else {})}
    raise ConfigurationError(
        f"A probe cannot read batches of {type(batch).__name__}; expected a dict with 'image', a tensor, or (image, label)."
    )
