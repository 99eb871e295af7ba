"""LatentCodec: pixels ↔ latents. The only place that knows a latent scale."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import as_file, files
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError

_CODEC_CLASSES = ("AutoencoderKL", "VQModel", "AutoencoderTiny")
_SCALING = {"scaling_factor": 1.0, "shift_factor": 0.0}  # what a configuration without them means


class LatentCodec(nn.Module):
    """A frozen autoencoder with the scale and shift of its latents: z = (encoder(x) − shift) · scale.

    Args:
        autoencoder: folder or hub id of a diffusers AutoencoderKL, VQModel or AutoencoderTiny; "builtin:digits" for the one
            shipped here; such a module itself; or None for the identity (diffusion in pixel space).
        scale: "config" takes ``scaling_factor`` and ``shift_factor`` from the autoencoder's config, and measures where it has none; "measure" sets one
            scale and shift from training images so that latents have mean 0 and variance 1; a number is taken as it is.
        subfolder: of the pipeline folder, such as "vae".
        sample_posterior: draw from the posterior of an AutoencoderKL (from the global generator) instead of taking its
            mode. Probes always take the mode.

    Raises:
        ConfigurationError: nothing loadable there, or a module of another class.
    """

    scale: Tensor
    shift: Tensor
    measured: Tensor

    def __init__(
        self,
        autoencoder: str | nn.Module | None = None,
        scale: float | Literal["config", "measure"] = "config",
        subfolder: str | None = None,
        sample_posterior: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(autoencoder, str):
            autoencoder = _load_autoencoder(autoencoder, subfolder)
        if autoencoder is not None and type(autoencoder).__name__ not in _CODEC_CLASSES:
            raise ConfigurationError(
                f"{type(autoencoder).__name__} is not a supported autoencoder; expected one of {', '.join(_CODEC_CLASSES)}."
            )
        self.autoencoder: Any = autoencoder
        self.sample_posterior = sample_posterior
        config: dict[str, Any] = dict(getattr(autoencoder, "config", {}))
        known = autoencoder is None or config.get("scaling_factor") is not None
        measure = scale == "measure" or (scale == "config" and not known)
        scale_value, shift_value = 1.0, 0.0
        if scale == "config" and not measure:
            scale_value, shift_value = (_number(config, name, default) for name, default in _SCALING.items())
        elif not measure:
            scale_value = float(scale)
        self.register_buffer("scale", torch.tensor(float(scale_value)))
        self.register_buffer("shift", torch.tensor(float(shift_value)))
        self.register_buffer("measured", torch.tensor(not measure))
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> LatentCodec:
        """Stays in eval mode: a frozen autoencoder is no part of training."""
        return super().train(False)

    @property
    def image_channels(self) -> int | None:
        """Channels of the images it encodes; None (any) for the identity."""
        return None if self.autoencoder is None else int(self.autoencoder.config.in_channels)

    @property
    def description(self) -> dict[str, Any]:
        """What tells this codec from another, as plain values: class and configuration, scale and shift."""
        config = dict(getattr(self.autoencoder, "config", {}))
        named = {key: value for key, value in config.items() if not key.startswith("_")}
        scale, shift = f"{float(self.scale):.4e}", f"{float(self.shift):.4e}"
        return {"class_name": type(self.autoencoder).__name__, **named, "scale": scale, "shift": shift}

    @torch.no_grad()
    def encode(self, images: Tensor, sample_posterior: bool | None = None) -> Tensor:
        """Images (N, C, H, W) in [−1, 1] → latents (N, c, h, w), always in float32."""
        with torch.autocast(images.device.type, enabled=False):
            return (self._encode_unscaled(images.float(), sample_posterior) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, c, h, w) → images (N, C, H, W), about [−1, 1], always in float32."""
        with torch.autocast(latents.device.type, enabled=False):
            z = latents.float() / self.scale + self.shift
            return z if self.autoencoder is None else self.autoencoder.decode(z).sample

    def _encode_unscaled(self, images: Tensor, sample_posterior: bool | None = None) -> Tensor:
        if self.autoencoder is None:
            return images
        encoded = self.autoencoder.encode(images)
        if not hasattr(encoded, "latent_dist"):
            return encoded.latents
        sample = self.sample_posterior if sample_posterior is None else sample_posterior
        return encoded.latent_dist.sample() if sample else encoded.latent_dist.mode()

    @torch.no_grad()
    def measure_scale(self, image_batches: Iterable[Tensor]) -> None:
        """Set scale and shift so that the latents of these images have mean 0 and variance 1 over all entries.

        Every rank must be given the same images. Does nothing if the scale is already known.
        """
        if bool(self.measured):
            return
        count, total, total_squared = 0, 0.0, 0.0
        for images in image_batches:
            z = self._encode_unscaled(images.to(self.scale.device).float(), sample_posterior=False).double()
            count += z.numel()
            total += float(z.sum())
            total_squared += float((z**2).sum())
        if count == 0:
            raise ConfigurationError("There are no training images, so no scale can be measured.")
        mean = total / count
        variance = total_squared / count - mean**2
        if not variance > 0:
            raise ConfigurationError(
                "The latents of the training images do not vary (or are not finite), so no scale can be measured; check the "
                "autoencoder and the images."
            )
        self.shift.fill_(mean)
        self.scale.fill_(variance**-0.5)
        self.measured.fill_(True)

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (c, h, w) of the latents of images (C, H, W), found by encoding one.

        Raises:
            ConfigurationError: wrong number of channels, or a size the autoencoder cannot divide.
        """
        channels = self.image_channels
        if channels is not None and image_shape[0] != channels:
            raise ConfigurationError(
                f"The images have {image_shape[0]} channel(s) but {type(self.autoencoder).__name__} encodes {channels}; set the "
                f"data's `channels: {channels}`."
            )
        image = torch.zeros(1, *image_shape, device=self.scale.device)
        try:
            latent = self.encode(image, sample_posterior=False)
            decoded = self.decode(latent).shape[1:]
        except RuntimeError as error:
            raise ConfigurationError(
                f"Images of {image_shape[1]}×{image_shape[2]} cannot be encoded ({error}); set the data's `image_size` larger."
            ) from error
        if tuple(decoded[1:]) != tuple(image_shape[1:]):
            factor = max(1, decoded[-1] // latent.shape[-1])
            fitting = max(factor, image_shape[-1] // factor * factor)
            raise ConfigurationError(
                f"Images of {image_shape[1]}×{image_shape[2]} cannot be divided by the autoencoder's factor {factor} (they come "
                f"back as {decoded[1]}×{decoded[2]}); set the data's `image_size` to a multiple of {factor}, such as {fitting}."
            )
        return tuple(latent.shape[1:])


def _number(config: dict[str, Any], name: str, default: float) -> float:
    value = config.get(name) or default
    if isinstance(value, (int, float)):
        return float(value)
    raise ConfigurationError(f"The autoencoder's {name} is {value!r}; expected a number.")


def _load_autoencoder(name: str, subfolder: str | None) -> nn.Module:
    from diffusers import AutoencoderKL, AutoencoderTiny, VQModel

    if name == "builtin:digits":
        with as_file(files("ldmprobe.models") / "digits_autoencoder") as folder:
            return AutoencoderKL.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False).float()
    classes = {cls.__name__: cls for cls in (AutoencoderKL, VQModel, AutoencoderTiny)}
    where = f"{name}/{subfolder}" if subfolder else name
    try:
        config = AutoencoderKL.load_config(name, subfolder=subfolder)
        class_name = config.get("_class_name")
        if class_name not in classes:
            raise ConfigurationError(
                f"{where} holds a {class_name}; expected one of {', '.join(classes)}. For a pipeline folder give its "
                "`subfolder`, such as 'vae'."
            )
        return classes[class_name].from_pretrained(
            name, subfolder=subfolder, use_safetensors=True, low_cpu_mem_usage=False
        )
    except ConfigurationError:
        raise
    except Exception as error:  # diffusers raises many kinds, all meaning "not loadable"
        raise ConfigurationError(f"No autoencoder could be loaded from {where!r}: {error}") from error
