"""What each pipeline class of diffusers is made of: the one table that loading, text encoding and export go by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.denoiser import Condition


def no_size(network_config: Any, height: int, width: int) -> Condition:
    """The network is not told how large the image is."""
    return {}


def sdxl_time_ids(network_config: Any, height: int, width: int) -> Condition:
    """Original size, crop and target size in pixels (Podell et al., 2023, arXiv:2307.01952, section 2.2): an image that was not cropped."""
    return {"time_ids": torch.tensor([[height, width, 0.0, 0.0, height, width]])}


def pixart_size(network_config: Any, height: int, width: int) -> Condition:
    """Resolution and aspect ratio, which only PixArt-α of 1,024 pixels is told (``use_additional_conditions`` in diffusers)."""
    told = network_config.get("use_additional_conditions")
    if not (network_config.get("sample_size") == 128 if told is None else told):
        return {}
    return {
        "resolution": torch.tensor([[float(height), float(width)]]),
        "aspect_ratio": torch.tensor([[height / width]]),
    }


@dataclass(frozen=True)
class Family:
    """A pipeline class.

    Attributes:
        network, autoencoder: names of the components; no autoencoder for pixel space.
        text: names by which the network takes what the pipeline's ``encode_prompt`` returns; "" for what it does not take.
        null_alternates: whether ``encode_prompt`` returns text, null, text, null, … or first all of the text's, then all of the null's.
        settings: of the pipeline that its ``encode_prompt`` goes by.
        scaling: the settings of the autoencoder that the pipeline undoes before it decodes.
        size: (config of the network, height, width in pixels) → what else it is told, of shape (1, …).
    """

    network: str = "unet"
    autoencoder: str | None = "vae"
    text: tuple[str, ...] = ()
    null_alternates: bool = True
    settings: tuple[str, ...] = ()
    scaling: tuple[str, ...] = ("scaling_factor",)
    size: Callable[[Any, int, int], Condition] = no_size


_MASKED = ("encoder_hidden_states", "encoder_attention_mask")

FAMILIES: dict[str, Family] = {
    "DDPMPipeline": Family(autoencoder=None),
    "DDIMPipeline": Family(autoencoder=None),
    "LDMPipeline": Family(autoencoder="vqvae"),
    "DiTPipeline": Family("transformer"),
    "StableDiffusionPipeline": Family(text=("encoder_hidden_states",)),
    "StableDiffusionXLPipeline": Family(
        text=("encoder_hidden_states", "text_embeds"),
        settings=("force_zeros_for_empty_prompt",),
        scaling=("scaling_factor", "latents_mean", "latents_std"),
        size=sdxl_time_ids,
    ),
    "PixArtAlphaPipeline": Family("transformer", text=_MASKED, null_alternates=False, size=pixart_size),
    "PixArtSigmaPipeline": Family("transformer", text=_MASKED, null_alternates=False),
    "StableDiffusion3Pipeline": Family(
        "transformer",
        text=("encoder_hidden_states", "pooled_projections"),
        scaling=("scaling_factor", "shift_factor"),
    ),
    "AuraFlowPipeline": Family("transformer", text=("encoder_hidden_states", ""), null_alternates=False),
}

REFUSED = {
    "FluxPipeline": "its latents are packed into tokens, its guidance is distilled into the network and its time shift depends on the image",
    "StableDiffusionInpaintPipeline": "its network takes a mask and a masked image beside the latents",
    "StableDiffusionUpscalePipeline": "its network takes a low-resolution image beside the latents",
    "StableCascadeDecoderPipeline": "it is three models in a row",
    "KandinskyV22Pipeline": "its network is told image embeddings, which a prior model makes of text",
    "IFPipeline": "it is three models in a row, each of another size",
    "LatentConsistencyModelPipeline": "a consistency model is no denoiser: it answers with where the whole path ends",
}


def family_of(class_name: str, where: str) -> Family:
    """The family of a pipeline class.

    Raises:
        ConfigurationError: of another family than these; the message says why where it is known, and which are supported.
    """
    if class_name in FAMILIES:
        return FAMILIES[class_name]
    why = f" ({REFUSED[class_name]})" if class_name in REFUSED else ""
    raise ConfigurationError(
        f"{where} is a {class_name}, which is not supported{why}; supported are {', '.join(FAMILIES)}."
    )
