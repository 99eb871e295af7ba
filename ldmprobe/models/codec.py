"""LatentCodec: pixels ↔ latents. The only place that knows a latent scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import Move, without_autocast
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.denoiser import config_of
from ldmprobe.models.lazy import LazyModule
from ldmprobe.models.model_folder import ModelFolder
from ldmprobe.models.pixels import as_floats
from ldmprobe.types import Batch, Component, PlainValues

IMAGES = ("latent", "moments", "image")
"""What a batch can have that latents are made of: kept latents or moments before images."""
_CODEC_CLASSES = ("AutoencoderKL", "VQModel", "AutoencoderTiny")
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""The settings of an autoencoder that say how its latents are scaled."""


class LatentCodec(nn.Module):
    """A frozen autoencoder with the scale and shift of its latents: z = (encoder(x) − shift) · scale.

    One that is given by name, or as a LazyModule that is not loaded, is read when it is first used, or by ``load``:
    where latents come from a cache, not before something is decoded or saved.

    Args:
        autoencoder: folder or hub id of a diffusers AutoencoderKL, VQModel or AutoencoderTiny; "builtin:digits" for the
            one shipped here; such a module itself; a LazyModule of one; or None for the identity (diffusion in pixel
            space).
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
            autoencoder = LazyModule(_files(autoencoder, subfolder))
        elif autoencoder is not None and not isinstance(autoencoder, LazyModule):
            autoencoder = LazyModule(autoencoder)
        self._modules["autoencoder"] = autoencoder
        outline = self.meta_module
        if outline is not None and type(outline).__name__ not in _CODEC_CLASSES:
            raise ConfigurationError(
                f"{type(outline).__name__} is not a supported autoencoder; expected one of {', '.join(_CODEC_CLASSES)}."
            )
        self.sample_posterior = sample_posterior
        config = dict(config_of(outline))
        if config.get("lookup_from_codebook"):
            raise ConfigurationError(
                f"{type(outline).__name__} has `lookup_from_codebook`: its latents are numbers of codes, which have no "
                "scale and take no noise; use an autoencoder with latents that vary continuously."
            )
        known = outline is None or any(config.get(name) is not None for name in ("scaling_factor", "latents_mean"))
        measure = scale == "measure" or (scale == "config" and not known)
        scale_value, shift_value = torch.ones((), dtype=torch.float32), torch.zeros((), dtype=torch.float32)
        if scale == "config" and not measure:
            scale_value, shift_value = _scale_and_shift({name: config.get(name) for name in scaling})
        elif not isinstance(scale, str):
            scale_value.fill_(scale)
        self.register_buffer("scale", scale_value)
        self.register_buffer("shift", shift_value)
        self.register_buffer("measured", torch.tensor(not measure))
        self.scale_known = not measure
        self.train(False)

    def train(self, mode: bool = True) -> LatentCodec:
        """Stays in eval mode: it is no part of training."""
        return super().train(False)

    def _apply(self, fn: Move, recurse: bool = True) -> LatentCodec:
        """Moves with the module it is part of, but its scale stays in float32, whatever precision that is trained
        in.
        """
        super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse)
        return self

    @property
    def autoencoder(self) -> Component:
        """The autoencoder, loaded now if it is not yet; None for the identity."""
        return None if self._frozen is None else self._frozen.network

    @property
    def meta_module(self) -> Component:
        """The autoencoder, without weights where it is read from files: for its configuration and shapes. None for the
        identity.
        """
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
        """What tells this codec from another, as plain values: class and configuration, scale and shift."""
        config = dict(config_of(self.meta_module))
        named = {key: value for key, value in config.items() if not key.startswith("_")}
        scale, shift = in_digits(self.scale, ".4e"), in_digits(self.shift, ".4e")
        return {"class_name": type(self.meta_module).__name__, **named, "scale": scale, "shift": shift}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
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
        """The same of a batch: of its ``image``, or of what ``unscaled`` made of these earlier."""
        with without_autocast(self.scale.device):
            if "latent" in batch:
                z = batch["latent"].float()
            elif "moments" in batch:
                z = self._mode_or_draw(_posterior(batch["moments"].float()), sample_posterior)
            else:
                z = self._encode_unscaled(as_floats(batch["image"]), sample_posterior)
            # Noise is drawn in the order of memory, in which convolutions leave it as they like.
            return ((z - self.shift) * self.scale).contiguous()

    @property
    def unscaled_kind(self) -> Literal["latent", "moments"]:
        """What ``unscaled`` gives."""
        return "moments" if self.sample_posterior and type(self.meta_module).__name__ == "AutoencoderKL" else "latent"

    @torch.no_grad()
    def unscaled(self, images: Tensor) -> Tensor:
        """Of images (N, C, H, W), what can be kept for ``latents``, in float32, before scale and shift: ``latent`` (N,
        c, h, w); or, where the posterior is sampled, its ``moments`` (N, 2c, h, w): mean and log-variance.
        """
        if self.unscaled_kind == "moments":
            return self.autoencoder.encode(as_floats(images)).latent_dist.parameters
        return self._encode_unscaled(as_floats(images), sample_posterior=False)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, c, h, w) → images (N, C, H, W), about [−1, 1], always in float32."""
        with without_autocast(latents.device):
            z = latents.float() / self.scale + self.shift
            return z if self.autoencoder is None else self.autoencoder.decode(z).sample

    def _encode_unscaled(self, images: Tensor, sample_posterior: bool | None = None) -> Tensor:
        if self.autoencoder is None:
            return images
        encoded = self.autoencoder.encode(images)
        if not hasattr(encoded, "latent_dist"):
            return encoded.latents
        return self._mode_or_draw(encoded.latent_dist, sample_posterior)

    def _mode_or_draw(self, posterior: Component, sample_posterior: bool | None) -> Tensor:
        sample = self.sample_posterior if sample_posterior is None else sample_posterior
        return posterior.sample() if sample else posterior.mode()

    @torch.no_grad()
    def measure_scale(self, batches: Iterable[Tensor | PlainValues]) -> None:
        """Set scale and shift so that the latents of these images (or batches, as ``latents`` takes them) have mean 0
        and variance 1 over all entries.

        Every rank must be given the same images. Does nothing if the scale is already known.
        """
        if bool(self.measured):
            return
        count, total, total_squared = 0, 0.0, 0.0
        self.shift.zero_()
        self.scale.fill_(1.0)
        for batch in batches:
            named = batch if isinstance(batch, dict) else {"image": batch}
            tensors = {name: value.to(self.scale.device) for name, value in named.items() if isinstance(value, Tensor)}
            z = self.latents(tensors, sample_posterior=False).double()
            count += z.numel()
            total += float(z.sum())
            total_squared += float((z**2).sum())
        if count == 0:
            raise ConfigurationError("There are no training images, so no scale can be measured.")
        mean = total / count
        variance = total_squared / count - mean**2
        if not variance > 0:
            raise ConfigurationError(
                "The latents of the training images do not vary (or are not finite), so no scale can be measured; "
                "check the autoencoder and the images."
            )
        self.shift.fill_(mean)
        self.scale.fill_(variance**-0.5)
        self.measured.fill_(True)

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (c, h, w) of the latents of images (C, H, W), found by encoding one.

        Raises:
            ConfigurationError: wrong number of channels, or a size the autoencoder cannot divide.
        """
        autoencoder, channels = self.meta_module, self.image_channels
        if autoencoder is None:
            return tuple(image_shape)
        if image_shape[0] != channels:
            raise ConfigurationError(
                f"The images have {image_shape[0]} channel(s) but {type(autoencoder).__name__} encodes {channels}; set "
                f"the data's `channels: {channels}`."
            )
        image = torch.zeros(1, *image_shape, device=autoencoder.device)
        try:
            encoded = autoencoder.encode(image)
            latent = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
            decoded = autoencoder.decode(latent).sample.shape[1:]
        except RuntimeError as error:
            raise ConfigurationError(
                f"Images of {image_shape[1]}×{image_shape[2]} cannot be encoded ({error}); set the data's `image_size` "
                "larger."
            ) from error
        if tuple(decoded[1:]) != tuple(image_shape[1:]):
            factor = max(1, decoded[-1] // latent.shape[-1])
            fitting = max(factor, image_shape[-1] // factor * factor)
            raise ConfigurationError(
                f"Images of {image_shape[1]}×{image_shape[2]} cannot be divided by the autoencoder's factor {factor} "
                f"(they come back as {decoded[1]}×{decoded[2]}); set the data's `image_size` to a multiple of "
                f"{factor}, such as {fitting}."
            )
        return tuple(latent.shape[1:])

    def image_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (C, H, W) of the images that latents (c, h, w) become, found by decoding one.

        Raises:
            ConfigurationError: the autoencoder does not take them.
        """
        autoencoder = self.meta_module
        if autoencoder is None:
            return tuple(latent_shape)
        try:
            image = autoencoder.decode(torch.zeros(1, *latent_shape, device=autoencoder.device)).sample
        except RuntimeError as error:
            raise ConfigurationError(
                f"{type(autoencoder).__name__} cannot decode latents of shape {tuple(latent_shape)}: {error}. Take "
                "network and autoencoder from one pipeline."
            ) from error
        return tuple(image.shape[1:])


def in_digits(values: Tensor, digits: str) -> str:
    """Return a scale or shift as text: one number, or one by channel with a comma between."""
    return ", ".join(format(value, digits) for value in values.flatten().tolist())


def _scale_and_shift(config: PlainValues) -> tuple[Tensor, Tensor]:
    """Return scale and shift by these settings of an autoencoder, in float32.

    As diffusers' pipelines do: one factor and shift, or (Stable Diffusion XL) mean and standard deviation by channel
    and one factor.
    """
    factor, shift = _number(config, "scaling_factor", 1.0), _number(config, "shift_factor", 0.0)
    if factor == 0:
        raise ConfigurationError("The autoencoder's scaling_factor is 0; expected another number.")
    means, deviations = _numbers(config, "latents_mean"), _numbers(config, "latents_std")
    if (means is None) != (deviations is None):
        there, absent = ("latents_mean", "latents_std") if deviations is None else ("latents_std", "latents_mean")
        raise ConfigurationError(f"The autoencoder's config has {there} and no {absent}; give both, or neither (null).")
    if means is None or deviations is None:
        return torch.tensor(factor, dtype=torch.float32), torch.tensor(shift, dtype=torch.float32)
    if shift != 0:
        raise ConfigurationError(
            f"The autoencoder's config has both a shift_factor, {shift}, and latents_mean; expected one of them, the "
            "other null."
        )
    if len(means) != len(deviations) or min(deviations) <= 0:
        raise ConfigurationError(
            f"The autoencoder's latents_mean is {means}, its latents_std {deviations}; expected a number for each "
            "channel, in latents_std above 0."
        )
    return factor / torch.tensor(deviations, dtype=torch.float32).view(-1, 1, 1), torch.tensor(
        means, dtype=torch.float32
    ).view(-1, 1, 1)


def _number(config: PlainValues, name: str, default: float) -> float:
    value = default if config.get(name) is None else config[name]
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    raise ConfigurationError(f"The autoencoder's {name} is {value!r}; expected a number.")


def _numbers(config: PlainValues, name: str) -> list[float] | None:
    values = config.get(name)
    if values is None:
        return None
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(v, (int, float)) and math.isfinite(v) for v in values
    ):
        raise ConfigurationError(
            f"The autoencoder's {name} is {values!r}; expected a list of numbers, one for each channel."
        )
    return [float(value) for value in values]


def _posterior(moments: Tensor) -> Component:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    return DiagonalGaussianDistribution(moments)


def _files(name: str, subfolder: str | None) -> ModelFolder:
    """Of a folder; or, of a hub id, downloaded.

    Raises:
        ConfigurationError: there is no autoencoder.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
    from huggingface_hub import hf_hub_download

    classes = {cls.__name__: cls for cls in (AutoencoderKL, VQModel, AutoencoderTiny)}
    where = f"{name}/{subfolder}" if subfolder else name
    folder = Path(_place(name), subfolder or "")
    try:
        if not folder.is_dir():
            folder = Path(hf_hub_download(name, "config.json", subfolder=subfolder)).parent
            hf_hub_download(name, "diffusion_pytorch_model.safetensors", subfolder=subfolder)
        class_name = str(dict(AutoencoderKL.load_config(folder)).get("_class_name"))
    except Exception as error:  # diffusers and the hub raise many kinds, all meaning "not loadable"
        raise ConfigurationError(f"No autoencoder could be loaded from {where!r}: {error}") from error
    if class_name not in classes:
        raise ConfigurationError(
            f"{where} holds a {class_name}; expected one of {', '.join(classes)}. For a pipeline folder give its "
            "`subfolder`, such as 'vae'."
        )
    return ModelFolder(folder, classes[class_name])


def _place(name: str) -> str:
    return str(files("ldmprobe.models") / "digits_autoencoder") if name == "builtin:digits" else name
