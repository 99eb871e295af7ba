"""LatentCodec: pixels ↔ latents. The only place that knows a latent scale."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import Move, without_autocast
from ldmprobe.errors import ConfigurationError, check_positive
from ldmprobe.models.autoencoder import (
    as_posterior,
    autoencoder_folder,
    check_autoencoder,
    has_posterior,
    image_shape_of,
    images_of,
    latent_shape_of,
    latents_of,
    posterior_of,
)
from ldmprobe.models.denoiser import config_of
from ldmprobe.models.latent_scale import SCALING, in_digits, moments_of, says_scale, scale_and_shift
from ldmprobe.models.lazy import LazyModule
from ldmprobe.models.pixels import as_floats
from ldmprobe.types import Batch, Component, PlainValues, StateDict

IMAGES = ("latent", "moments", "image")
"""What a batch can have that latents are made of: kept latents or moments before images."""
_FAR = 3.0  # times as large or small as a standard deviation should be, so as to warn: 2.2 of log-SNR


class LatentCodec(nn.Module):
    """A frozen autoencoder with the scale and shift of its latents: z = (encoder(x) − shift) · scale.

    One that is given by name, or as a LazyModule that is not loaded, is read when it is first used, or by ``load``:
    where latents come from a cache, not before something is decoded or saved.

    Args:
        autoencoder: folder or hub id of a diffusers AutoencoderKL, VQModel, AutoencoderTiny or AutoencoderDC;
            "builtin:digits" for the one shipped here; such a module itself; a LazyModule of one; or None for the
            identity (diffusion in pixel space).
        scale: "config" takes ``scaling_factor`` and ``shift_factor``, or ``latents_mean`` and ``latents_std`` by
            channel, from the autoencoder's config, and measures where it has none; "measure" sets one scale and shift
            from training images so that latents have mean 0 and variance 1; a number is taken as it is.
        subfolder: of the pipeline folder, such as "vae".
        sample_posterior: draw from the posterior of an AutoencoderKL (from the global generator) instead of taking its
            mode. Probes always take the mode.
        scaling: the settings of the config that "config" goes by; a pipeline does not read all of them.

    Attributes:
        scale, shift: one number each, or one by channel, (c, 1, 1).

    Raises:
        ConfigurationError: nothing loadable there, a module of another class, or settings of it that contradict each
            other.
    """

    scale: Tensor
    shift: Tensor
    measured: Tensor

    def __init__(
        self,
        autoencoder: str | nn.Module | LazyModule | None = None,
        scale: float | Literal["config", "measure"] = "config",
        subfolder: str | None = None,
        sample_posterior: bool = False,
        scaling: Sequence[str] = SCALING,
    ) -> None:
        super().__init__()
        if isinstance(autoencoder, str):
            autoencoder = LazyModule(autoencoder_folder(autoencoder, subfolder))
        elif autoencoder is not None and not isinstance(autoencoder, LazyModule):
            autoencoder = LazyModule(autoencoder)
        self._modules["autoencoder"] = autoencoder
        outline = self.meta_module
        if outline is not None:
            check_autoencoder(outline)
        self.sample_posterior = sample_posterior
        config = dict(config_of(outline))
        measure = scale == "measure" or (scale == "config" and outline is not None and not says_scale(config))
        scale_value, shift_value = torch.ones((), dtype=torch.float32), torch.zeros((), dtype=torch.float32)
        if scale == "config" and not measure:
            scale_value, shift_value = scale_and_shift({name: config.get(name) for name in scaling})
        elif not isinstance(scale, str):
            check_positive("LatentCodec", scale=scale)
            scale_value.fill_(scale)
        elif not measure:
            raise ConfigurationError(
                f"LatentCodec got scale {scale!r}; expected 'config', 'measure' or a number above 0."
            )
        self.register_buffer("scale", scale_value)
        self.register_buffer("shift", shift_value)
        self.register_buffer("measured", torch.tensor(not measure))
        self.scale_known = not measure
        self.train(False)

    def train(self, mode: bool = True) -> LatentCodec:
        """Stays in eval mode: it is no part of training."""
        return super().train(False)

    def _apply(self, fn: Move, recurse: bool = True) -> LatentCodec:
        """Move with the module that it is part of, but keep the scale in float32, whatever that is trained in."""
        super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse)
        return self

    @property
    def autoencoder(self) -> Component:
        """The autoencoder, loaded now if it is not yet; None for the identity."""
        return None if self._frozen is None else self._frozen.network

    @property
    def meta_module(self) -> Component:
        """The autoencoder, without weights if it is read from files, for its shapes; None for the identity."""
        return None if self._frozen is None else self._frozen.meta_module

    @property
    def _frozen(self) -> Component:
        return self._modules["autoencoder"]

    def load(self) -> None:
        """Load the autoencoder, unless it is there."""
        _ = self.autoencoder

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The autoencoder's weights by name, which do not have to be loaded for it."""
        return iter(()) if self._frozen is None else self._frozen.weights()

    @property
    def image_channels(self) -> int | None:
        """Channels of the images it encodes; None (any) for the identity."""
        return None if self.meta_module is None else int(self.meta_module.config.in_channels)

    @property
    def description(self) -> PlainValues:
        """Return what tells this codec from another, as plain values: class and configuration, scale and shift."""
        named = {key: value for key, value in config_of(self.meta_module).items() if not key.startswith("_")}
        scale, shift = in_digits(self.scale, ".4e"), in_digits(self.shift, ".4e")
        return {"class_name": type(self.meta_module).__name__, **named, "scale": scale, "shift": shift}

    def _load_from_state_dict(self, state_dict: StateDict, prefix: str, *args: object) -> None:
        """A checkpoint decides whether there is one scale or one by channel."""
        for name, own in (("scale", self.scale), ("shift", self.shift)):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.ndim in (0, 3) and saved.shape != own.shape:
                self._buffers[name] = own.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def encode(self, images: Tensor, sample_posterior: bool | None = None) -> Tensor:
        """Images (N, C, H, W) in [−1, 1] → latents (N, c, h, w), always in float32."""
        return self.latents({"image": images}, sample_posterior)

    @torch.no_grad()
    def latents(self, batch: Batch, sample_posterior: bool | None = None) -> Tensor:
        """Return the latents of a batch: of its ``image``, or of what ``unscaled`` made of these earlier."""
        with without_autocast(self.scale.device):
            if "latent" in batch:
                z = batch["latent"].float()
            elif "moments" in batch:
                posterior = as_posterior(batch["moments"].float())
                z = posterior.sample() if self._samples(sample_posterior) else posterior.mode()
            else:
                z = self._encode_unscaled(as_floats(batch["image"]), sample_posterior)
            # Noise is drawn in the order of memory, in which convolutions leave it as they like.
            return ((z - self.shift) * self.scale).contiguous()

    @property
    def unscaled_kind(self) -> Literal["latent", "moments"]:
        """Return what ``unscaled`` gives."""
        return "moments" if self.sample_posterior and has_posterior(self.meta_module) else "latent"

    @torch.no_grad()
    def unscaled(self, images: Tensor) -> Tensor:
        """Encode images (N, C, H, W) to the form that is kept for ``latents``, in float32, before scale and shift:
        ``latent`` (N, c, h, w); or, where the posterior is sampled, its ``moments`` (N, 2c, h, w), mean and
        log-variance.
        """
        if self.unscaled_kind == "moments":
            return posterior_of(self.autoencoder, as_floats(images)).parameters
        return self._encode_unscaled(as_floats(images), sample_posterior=False)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, c, h, w) → images (N, C, H, W), about [−1, 1], always in float32."""
        return self.differentiable(latents)

    def differentiable(self, latents: Tensor) -> Tensor:
        """``decode``, for those who ask for its derivative: of a codebook, the straight-through one."""
        with without_autocast(latents.device):
            z = latents.float() / self.scale + self.shift
            return z if self.autoencoder is None else images_of(self.autoencoder, z)

    def _encode_unscaled(self, images: Tensor, sample_posterior: bool | None) -> Tensor:
        if self.autoencoder is None:
            return images
        return latents_of(self.autoencoder, images, self._samples(sample_posterior))

    def _samples(self, asked: bool | None) -> bool:
        return self.sample_posterior if asked is None else asked

    def check_measured(self) -> None:
        """Raise ConfigurationError if the scale is to be measured and was not: latents would be as they are."""
        if not (self.scale_known or bool(self.measured)):  # the latter waits for the device
            raise ConfigurationError(
                "The scale of the latents is to be measured on training images, of which the data show none before "
                "training; train on ImageData, call `codec.measure_scale(batches)` first, or give LatentCodec a number "
                "as `scale`."
            )

    @torch.no_grad()
    def warn_of_scale(self, batches: Iterable[Tensor | PlainValues], deviation: float = 1.0) -> None:
        """Warn where the latents of these images are far from the standard deviation that noise levels are for, by a
        scale that was not measured: a new autoencoder of diffusers says ``scaling_factor: 0.18215`` by itself.
        """
        looked_at = self.scale_known and self.meta_module is not None
        moments = moments_of(map(self._latents_beside, batches), per_channel=False) if looked_at else None
        if moments is None:
            return
        mean, std = float(moments.mean), float(moments.variance.clamp(min=0).sqrt())
        if not deviation / _FAR < std < deviation * _FAR or abs(mean) > deviation * _FAR:
            warnings.warn(
                f"Latents of training images have mean {mean:.2g} and standard deviation {std:.2g} by the scale "
                f"{in_digits(self.scale, '.4g')} of the autoencoder's config (or one that was given), where noise "
                f"levels are for 0 and {deviation:g}: at each of them, the signal is another than its log-SNR says. "
                "Write `scale: measure` in LatentCodec.",
                stacklevel=2,
            )

    @torch.no_grad()
    def measure_scale(self, batches: Iterable[Tensor | PlainValues], per_channel: bool = False) -> None:
        """Set scale and shift so that the latents of these images (or batches, as ``latents`` takes them) have mean 0
        and variance 1 over all entries, or over those of each channel.

        Every rank must be given the same images. Does nothing if the scale is already known.
        """
        if bool(self.measured):
            return
        self.shift.zero_()
        self.scale.fill_(1.0)
        moments = moments_of(map(self._latents_beside, batches), per_channel)
        if moments is None:
            raise ConfigurationError("There are no training images, so no scale can be measured.")
        if not bool((moments.variance > 0).all()):
            raise ConfigurationError(
                "The latents of the training images do not vary (or are not finite), so no scale can be measured; "
                "check the autoencoder and the images."
            )
        for name, value in (("shift", moments.mean), ("scale", moments.variance**-0.5)):
            self._buffers[name] = (value.view(-1, 1, 1) if per_channel else value).to(self.scale)
        self.measured.fill_(True)

    def _latents_beside(self, batch: Tensor | PlainValues) -> Tensor:
        """Return the latents of images, or of a batch as ``latents`` takes it, that may be on another device."""
        named = batch if isinstance(batch, dict) else {"image": batch}
        tensors = {name: value.to(self.scale.device) for name, value in named.items() if isinstance(value, Tensor)}
        return self.latents(tensors, sample_posterior=False)

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (c, h, w) of the latents of images (C, H, W), found by encoding one.

        Raises:
            ConfigurationError: wrong number of channels, or a size the autoencoder cannot divide.
        """
        return tuple(image_shape) if self.meta_module is None else latent_shape_of(self.meta_module, image_shape)

    def image_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (C, H, W) of the images that latents (c, h, w) become, found by decoding one.

        Raises:
            ConfigurationError: the autoencoder does not take them.
        """
        return tuple(latent_shape) if self.meta_module is None else image_shape_of(self.meta_module, latent_shape)
