"""Real images for a probe, from whatever a Trainer trains on: an ImageData, or any loaders of dicts or (image, …) tuples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
import torch

from ldmprobe.callbacks.probe_callback import run_directory
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.record import fingerprint
from ldmprobe.probing.reference import Reference, encode_images


def reference_of(trainer: L.Trainer, model: DiffusionModel, num_images: int) -> Reference:
    """The run's reference: read from ``reference.safetensors`` in its directory, or fitted on training images and put there."""
    path = run_directory(trainer) / "reference.safetensors"
    codec = fingerprint(model.codec.description)
    if path.exists():
        reference = Reference.load(path)
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
    with evaluating(model.modules):
        batches = _batches(trainer, num_images, held_out=False)
        reference = Reference.fit(encode_images(model.codec, (batch["image"] for batch in batches)), codec)
    if trainer.is_global_zero:
        reference.save(path)
    return reference


def held_out_of(
    trainer: L.Trainer, model: DiffusionModel, num_images: int, batches: Iterable[Any] | None = None
) -> HeldOut:
    """Held-out images, encoded, with their conditions: of ``batches`` where they are given, else the Trainer's validation data.

    Raises:
        ConfigurationError: there are none.
    """
    chosen = _batches(trainer, num_images, held_out=True)
    if batches is not None:
        chosen = _limited((_as_dict(batch) for batch in batches), num_images)
    with evaluating(model.modules):
        return HeldOut.encode(model.codec, model.conditioning, chosen)


def has_held_out(trainer: L.Trainer) -> bool:
    """Whether :func:`held_out_of` will find any."""
    data: Any = getattr(trainer, "datamodule", None)
    return hasattr(data, "reference_batches") or trainer.val_dataloaders is not None


def _batches(trainer: L.Trainer, num_images: int, held_out: bool) -> Iterator[dict[str, Any]]:
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
    yield from _limited((_as_dict(batch) for one in loaders for batch in one), num_images)


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
