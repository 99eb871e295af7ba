"""What each pipeline class of diffusers is made of: the one table that loading, text encoding and export go by."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.denoiser import Condition
from ldmprobe.types import Component


def no_size(network_config: Component, height: int, width: int) -> Condition:
    """The network is not told how large the image is."""
    return {}


def sdxl_time_ids(network_config: Component, height: int, width: int) -> Condition:
    """Original size, crop and target size in pixels (Podell et al., 2023, arXiv:2307.01952, section 2.2): an image that
    was not cropped.
    """
    return {"time_ids": torch.tensor([[height, width, 0.0, 0.0, height, width]])}


def pixart_size(network_config: Component, height: int, width: int) -> Condition:
    """Resolution and aspect ratio, for PixArt-α of 1,024 pixels alone (diffusers' ``use_additional_conditions``)."""
    told = network_config.get("use_additional_conditions")
    if not (network_config.get("sample_size") == 128 if told is None else told):
        return {}
    return {
        "resolution": torch.tensor([[float(height), float(width)]]),
        "aspect_ratio": torch.tensor([[height / width]]),
    }


def unet_classes(pipeline: Component) -> int | None:
    """Return the classes of a U-Net: the last of its embeddings stands for none, as guidance needs it."""
    embeds = pipeline.unet.config.get("num_class_embeds")
    return None if embeds is None else embeds - 1


def dit_classes(pipeline: Component) -> int | None:
    """Return the classes of a DiT; a pipeline of fewer than 1,000 was padded, and has as many as it has labels."""
    classes = pipeline.transformer.config.num_embeds_ada_norm
    return min(classes, max(pipeline.labels.values(), default=classes - 1) + 1)


@dataclass(frozen=True)
class PipelineSpec:
    """A pipeline class.

    Attributes:
        network, autoencoder: names of the components; no autoencoder for pixel space.
        text: names by which the network takes what the pipeline's ``encode_prompt`` returns; "" for what it does not
            take.
        further_prompts: arguments of ``encode_prompt`` that have no default, for further encoders.
        null_alternates: whether ``encode_prompt`` returns text, null, text, null, … or first all of the text's, then
            all of the null's.
        settings: of the pipeline that its ``encode_prompt`` goes by.
        scaling: the settings of the autoencoder that the pipeline undoes before it decodes.
        size: (config of the network, height, width in pixels) → what else it is told, of shape (1, …).
        num_classes: pipeline → the number of classes that its network embeds; None for none. Only asked where there is
            no text.
        square: whether the pipeline samples square latents only.
        sets: settings that the pipeline gives any scheduler in ``__init__``.
        as_trained: further arguments of a call that samples in the size that is asked for.
        beside: channels of the picture that the network is told beside latents: so many of its own (1 of a mask, 3 of a
            small image), and so many for each channel of the latents (1 of another image's latents).
        text_of: the pipeline class that has the same text, and is told nothing else; "" where it is this one.
        fixed_scale: the scaling_factor that the pipeline gives any autoencoder in ``__init__``.
    """

    network: str = "unet"
    autoencoder: str | None = "vae"
    text: tuple[str, ...] = ()
    further_prompts: tuple[str, ...] = ()
    null_alternates: bool = True
    settings: tuple[str, ...] = ()
    scaling: tuple[str, ...] = ("scaling_factor",)
    size: Callable[[Component, int, int], Condition] = no_size
    num_classes: Callable[[Component], int | None] = unet_classes
    square: bool = False
    sets: tuple[tuple[str, object], ...] = ()
    as_trained: str = ""
    beside: tuple[int, int] = (0, 0)
    text_of: str = ""
    fixed_scale: float | None = None


_UNBINNED = ", use_resolution_binning=False"
_MASKED = ("encoder_hidden_states", "encoder_attention_mask")

FAMILIES: dict[str, PipelineSpec] = {
    "DDPMPipeline": PipelineSpec(autoencoder=None),
    "DDIMPipeline": PipelineSpec(autoencoder=None),
    "LDMPipeline": PipelineSpec(autoencoder="vqvae", square=True),
    "DiTPipeline": PipelineSpec("transformer", num_classes=dit_classes, square=True),
    "StableDiffusionPipeline": PipelineSpec(
        text=("encoder_hidden_states",), sets=(("steps_offset", 1), ("clip_sample", False))
    ),
    "StableDiffusionInpaintPipeline": PipelineSpec(
        text=("encoder_hidden_states",),
        sets=(("steps_offset", 1),),
        beside=(1, 1),
        text_of="StableDiffusionPipeline",
    ),
    "StableDiffusionUpscalePipeline": PipelineSpec(
        text=("encoder_hidden_states",), beside=(3, 0), text_of="StableDiffusionPipeline", fixed_scale=0.08333
    ),
    "StableDiffusionInstructPix2PixPipeline": PipelineSpec(
        text=("encoder_hidden_states",), beside=(0, 1), text_of="StableDiffusionPipeline"
    ),
    "StableDiffusionXLPipeline": PipelineSpec(
        text=("encoder_hidden_states", "text_embeds"),
        settings=("force_zeros_for_empty_prompt",),
        scaling=("scaling_factor", "latents_mean", "latents_std"),
        size=sdxl_time_ids,
    ),
    "PixArtAlphaPipeline": PipelineSpec(
        "transformer", text=_MASKED, null_alternates=False, size=pixart_size, as_trained=_UNBINNED
    ),
    "PixArtSigmaPipeline": PipelineSpec("transformer", text=_MASKED, null_alternates=False, as_trained=_UNBINNED),
    "StableDiffusion3Pipeline": PipelineSpec(
        "transformer",
        text=("encoder_hidden_states", "pooled_projections"),
        further_prompts=("prompt_2", "prompt_3"),
        scaling=("scaling_factor", "shift_factor"),
    ),
    "AuraFlowPipeline": PipelineSpec("transformer", text=("encoder_hidden_states", ""), null_alternates=False),
}

REFUSED = {
    "FluxPipeline": "its latents are packed into tokens, its guidance is distilled into the network and its time shift "
    "depends on the image",
    "StableCascadeDecoderPipeline": "it is three models in a row",
    "KandinskyV22Pipeline": "its network is told image embeddings, which a prior model makes of text",
    "IFPipeline": "it is three models in a row, each of another size",
    "LatentConsistencyModelPipeline": "a consistency model is no denoiser: it answers with where the whole path ends",
}


def has_lora_format(pipeline: Component, component: str) -> bool:
    """Return whether ``load_lora_weights`` of a pipeline of diffusers, or of its class, knows this component."""
    save = getattr(pipeline, "save_lora_weights", None)
    return save is not None and f"{component}_lora_layers" in inspect.signature(save).parameters


def family_of(class_name: str, where: str) -> PipelineSpec:
    """Return the family of a pipeline class.

    Raises:
        ConfigurationError: the class is of none of these families; the message says why where it is known, and which
            are supported.
    """
    if class_name in FAMILIES:
        return FAMILIES[class_name]
    why = f" ({REFUSED[class_name]})" if class_name in REFUSED else ""
    raise ConfigurationError(
        f"{where} is a {class_name}, which is not supported{why}; supported are {', '.join(FAMILIES)}."
    )
