"""AutoencoderModel: the first stage as a probe looks at it, from a LightningModule in training, a checkpoint or a
folder.

A user's own LightningModule is probed by returning one of these from a method called ``autoencoder_model``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import without_autocast
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.autoencoder import (
    check_autoencoder,
    image_shape_of,
    images_of,
    latent_shape_of,
    latents_of,
    posterior_of,
)
from ldmprobe.models.denoiser import network_config
from ldmprobe.models.latent_scale import moments_of
from ldmprobe.types import Component, PlainValues


@dataclass(frozen=True)
class AutoencoderModel:
    """An autoencoder of diffusers with what is known of its training.

    Attributes:
        network: an AutoencoderKL, VQModel, AutoencoderTiny or AutoencoderDC.
        image_shape: (C, H, W) of the images that it is for; empty where that is not known.
        weights: which weights these are, such as "ema" or "raw"; goes into the record.
        trained_steps: optimizer steps behind these weights, where known.
        trained_on: a summary of the data that they were trained on, where known (``DataIdentity.summary``).

    Raises:
        ConfigurationError: it is another network.
    """

    network: Component
    image_shape: tuple[int, ...] = ()
    weights: str = "raw"
    trained_steps: int = 0
    trained_on: PlainValues = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_autoencoder(self.network)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def modules(self) -> list[nn.Module]:
        """Return everything whose train/eval mode a probe sets and restores."""
        return [self.network]

    @cached_property
    def latent_shape(self) -> tuple[int, ...]:
        """(c, h, w) of the latents of its images; empty where these are not known.

        Raises:
            ConfigurationError: it does not take images of this shape, or decodes them to another.
        """
        if not self.image_shape:
            return ()
        latent_shape = latent_shape_of(self.network, self.image_shape)
        check_same_shape(self.image_shape, image_shape_of(self.network, latent_shape))
        return latent_shape

    @property
    def description(self) -> PlainValues:
        """Class and configuration as plain values."""
        return network_config(self.network) or {}

    @torch.no_grad()
    def posterior(self, images: Tensor) -> Component:
        """Return q(z|x) of images (N, C, H, W), in float32; of a network that ``has_posterior``."""
        with without_autocast(images.device):
            return posterior_of(self.network, images.float())

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [−1, 1] → latents (N, c, h, w) without scale, before any quantization, in float32: the
        posterior's mode where there is one.
        """
        with without_autocast(images.device):
            return latents_of(self.network, images.float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, c, h, w) without scale → images (N, C, H, W), about [−1, 1], in float32."""
        with without_autocast(latents.device):
            return images_of(self.network, latents.float())

    @torch.no_grad()
    def latent_moments(self, batches: Iterable[Tensor]) -> PlainValues:
        """Return how many ``images`` these are, and the ``mean`` and ``std`` of their latents by channel."""
        moments = moments_of(map(self.encode, batches), per_channel=True)
        if moments is None:
            return {}
        std = moments.variance.clamp(min=0).sqrt()
        return {"images": moments.num_latents, "mean": moments.mean.tolist(), "std": std.tolist()}


def check_same_shape(images: Sequence[int], decoded: Sequence[int]) -> None:
    """Raise ConfigurationError if images (C, H, W) are decoded to another shape, which torch would broadcast."""
    if tuple(images) != tuple(decoded):
        raise ConfigurationError(
            f"The autoencoder decodes images of shape {tuple(images)} to images of shape {tuple(decoded)}; give it as "
            "many `out_channels` as `in_channels`, and a decoder of as many blocks as the encoder."
        )


@runtime_checkable
class HasAutoencoder(Protocol):
    """A LightningModule that says which autoencoder of it is to be probed."""

    def autoencoder_model(self) -> AutoencoderModel: ...
