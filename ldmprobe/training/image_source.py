"""What training asks of its data besides batches: images' shape, and training images to measure latents by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeGuard, runtime_checkable

import torch

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning, ConditioningData
from ldmprobe.probing.probe import evaluating
from ldmprobe.types import Batch, PlainValues

_MEASURED_IMAGES = 1024  # for the scale of latents


@runtime_checkable
class CachedLatents(Protocol):
    """Data that may be read from a cache of latents, as ImageData's."""

    latents: str | None

    def use_latents(self, codec: LatentCodec, conditioning: Conditioning) -> None: ...


@runtime_checkable
class _HasImageShape(Protocol):
    image_shape: tuple[int, ...]


@runtime_checkable
class _ShowsImages(Protocol):
    def reference_batches(self, num_images: int) -> Iterator[Batch]: ...


def says_shape(data: object) -> TypeGuard[ConditioningData]:
    """Return whether data say what shape their images have, as ImageData does. What else of a ConditioningData they
    need, the conditioning decides.
    """
    return isinstance(data, _HasImageShape) and bool(data.image_shape)


def shows_images(data: object) -> TypeGuard[ConditioningData]:
    """Return whether data say what shape their images have, and show some, too."""
    return says_shape(data) and isinstance(data, _ShowsImages)


def image_shape_in(data: object) -> tuple[int, ...]:
    """Return the shape (C, H, W) of the data's images; empty where they do not say.

    Raises:
        ConfigurationError: the data are cached latents.
    """
    if isinstance(data, CachedLatents) and data.latents is not None:
        raise ConfigurationError("Autoencoding is trained on images, not on latents; leave out the data's `latents`.")
    return tuple(data.image_shape) if says_shape(data) else ()


def measured_latents(model: AutoencoderModel, data: object) -> PlainValues:
    """Return the moments of the latents of 1,024 training images (``AutoencoderModel.latent_moments``), or of all there
    are; empty where the data show none.
    """
    if not shows_images(data):
        return {}
    with evaluating(model.modules):
        batches = data.reference_batches(_MEASURED_IMAGES)
        return model.latent_moments(batch["image"].to(model.device) for batch in batches)


def measure_scale(codec: LatentCodec, data: ConditioningData, device: torch.device) -> None:
    """Have a codec's scale measured on 1,024 training images, unless it is known, on the device that training will move
    it to: encoding takes long.
    """
    codec.to(device)
    codec.measure_scale(data.reference_batches(_MEASURED_IMAGES))
