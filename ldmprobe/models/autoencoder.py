"""How the autoencoders of diffusers are asked: for latents or a posterior of images, and for images of latents.

No other file knows their classes apart.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.denoiser import config_of
from ldmprobe.models.library import class_named
from ldmprobe.models.model_folder import ModelFolder
from ldmprobe.types import Component

AUTOENCODERS = ("AutoencoderKL", "VQModel", "AutoencoderTiny", "AutoencoderDC")
"""The classes of diffusers that are known here."""
_IN_DECODER = ("decoder.", "post_quant_conv.")
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def check_autoencoder(network: Component) -> None:
    """Raise ConfigurationError if ``network`` is none of these, or its latents are numbers of codes."""
    name = type(network).__name__
    if name not in AUTOENCODERS:
        raise ConfigurationError(f"{name} is not a supported autoencoder; expected one of {', '.join(AUTOENCODERS)}.")
    if config_of(network).get("lookup_from_codebook"):
        raise ConfigurationError(
            f"{name} has `lookup_from_codebook`: its latents are numbers of codes, which have no scale and take no "
            "noise; use an autoencoder with latents that vary continuously."
        )


def has_posterior(network: Component) -> bool:
    """Return whether its encoder answers a posterior, of which latents are drawn."""
    return type(network).__name__ == "AutoencoderKL"


def has_codebook(network: Component) -> bool:
    """Return whether its decoder quantizes latents, to the rows of ``network.quantize.embedding.weight``."""
    return type(network).__name__ == "VQModel"


def as_posterior(moments: Tensor) -> Component:
    """Return the posterior with this mean and log-variance, (N, 2c, h, w), the latter clamped to [−30, 20]."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    return DiagonalGaussianDistribution(moments)


def posterior_of(network: Component, images: Tensor) -> Component:
    """Return the posterior q(z|x) of images (N, C, H, W), with ``mean``, ``logvar``, ``mode()``, ``sample()`` and
    ``parameters``; of a network that ``has_posterior``.
    """
    return network.encode(images, return_dict=False)[0]


def latents_of(network: Component, images: Tensor, sample_posterior: bool = False) -> Tensor:
    """Return the latents (N, c, h, w) of images (N, C, H, W), without any scale and before quantization: the encoder's
    answer, or its posterior's mode or a draw.
    """
    if not has_posterior(network):
        return network.encode(images, return_dict=False)[0]
    posterior = posterior_of(network, images)
    return posterior.sample() if sample_posterior else posterior.mode()


def images_of(network: Component, latents: Tensor, quantize: bool = True) -> Tensor:
    """Return the images (N, C, H, W) of latents (N, c, h, w) without scale.

    Args:
        quantize: False takes latents as they are where the network has a codebook.
    """
    if has_codebook(network):
        return network.decode(latents, force_not_quantize=not quantize, return_dict=False)[0]
    return network.decode(latents, return_dict=False)[0]


def factor_of(network: Component) -> int:
    """Return f, by which it divides the sides of images."""
    config = network.config
    return int(2 ** (len(config.get("block_out_channels") or config["encoder_block_out_channels"]) - 1))


def decoder_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that images depend on and latents do not, without a codebook."""
    return [parameter for name, parameter in network.named_parameters() if name.startswith(_IN_DECODER)]


def last_layer(network: Component) -> nn.Parameter:
    """Return the weight of the decoder's last convolution."""
    return [parameter for parameter in network.decoder.parameters() if parameter.ndim == 4][-1]


@torch.no_grad()
def latent_shape_of(network: Component, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape (c, h, w) of the latents of images (C, H, W), or refuse them, as ``LatentCodec`` does."""
    channels = int(network.config.in_channels)
    if image_shape[0] != channels:
        raise ConfigurationError(
            f"The images have {image_shape[0]} channel(s) but {type(network).__name__} encodes {channels}; set "
            f"the data's `channels: {channels}`."
        )
    factor, size = factor_of(network), f"{image_shape[1]}×{image_shape[2]}"
    if any(side % factor for side in image_shape[1:]):
        fitting = max(factor, image_shape[-1] // factor * factor)
        raise ConfigurationError(
            f"Images of {size} cannot be divided by the autoencoder's factor {factor}; set the data's `image_size` to "
            f"a multiple of {factor}, such as {fitting}."
        )
    try:
        return tuple(latents_of(network, torch.zeros(1, *image_shape, device=network.device)).shape[1:])
    except RuntimeError as error:
        raise ConfigurationError(
            f"Images of {size} cannot be encoded ({error}); set the data's `image_size` larger."
        ) from error


@torch.no_grad()
def image_shape_of(network: Component, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape (C, H, W) of the images of latents (c, h, w), or refuse them, as ``LatentCodec`` does."""
    try:
        image = images_of(network, torch.zeros(1, *latent_shape, device=network.device))
    except RuntimeError as error:
        raise ConfigurationError(
            f"{type(network).__name__} cannot decode latents of shape {tuple(latent_shape)}: {error}. Take "
            "network and autoencoder from one pipeline."
        ) from error
    return tuple(image.shape[1:])


def autoencoder_folder(
    name: str, subfolder: str | None = None, revision: str | None = None, local_files_only: bool = False
) -> ModelFolder:
    """Return the files of an autoencoder: a folder, or those of a hub id, downloaded; "builtin:digits" is the one
    shipped here.

    Args:
        subfolder: of a pipeline's folder or repository, such as "vae".
        revision: branch, tag or commit on the hub.
        local_files_only: never ask the hub, only its cache.

    Raises:
        ConfigurationError: there is no autoencoder.
    """
    from diffusers import AutoencoderKL

    where = f"{name}/{subfolder}" if subfolder else name
    try:
        config, *_ = _found(name, ("config.json", _WEIGHTS), subfolder, revision, local_files_only)
        class_name = str(dict(AutoencoderKL.load_config(config.parent)).get("_class_name"))
    except Exception as error:  # diffusers and the hub raise many kinds, all meaning "not loadable"
        raise ConfigurationError(f"No autoencoder could be loaded from {where!r}: {error}") from error
    if class_name not in AUTOENCODERS:
        raise ConfigurationError(
            f"{where} holds a {class_name}; expected one of {', '.join(AUTOENCODERS)}. For a pipeline folder give its "
            "`subfolder`, such as 'vae'."
        )
    return ModelFolder(config.parent, class_named("diffusers", class_name))


def holds_autoencoder(name: str, revision: str | None = None, local_files_only: bool = True) -> bool:
    """Return whether this is the folder or hub id of an autoencoder, or "builtin:digits", and not of a pipeline, which
    has no config.json of its own. By default the hub's cache alone is looked into.
    """
    try:
        (config,) = _found(name, ("config.json",), None, revision, local_files_only)
        return json.loads(config.read_text()).get("_class_name") in AUTOENCODERS
    except (OSError, ValueError, AttributeError, ConfigurationError):  # whoever loads it will say what is the matter
        return False


def _found(
    name: str, files: tuple[str, ...], subfolder: str | None, revision: str | None, local_files_only: bool
) -> list[Path]:
    """Return the paths of files in a folder here, else those of a hub repository."""
    from huggingface_hub import hf_hub_download

    place = str(resources.files("ldmprobe.models") / "digits_autoencoder") if name == "builtin:digits" else name
    folder = Path(place, subfolder or "").expanduser()
    if folder.is_dir() and revision is not None:
        raise ConfigurationError(f"`revision` is of the hub, but {name} is a folder here; leave it out.")
    if folder.is_dir():
        return [folder / file for file in files]
    return [
        Path(hf_hub_download(name, file, subfolder=subfolder, revision=revision, local_files_only=local_files_only))
        for file in files
    ]
