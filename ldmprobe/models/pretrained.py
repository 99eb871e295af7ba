"""A diffusers pipeline, from a folder or the hub, taken apart into a DiffusionModel."""

from __future__ import annotations

from typing import Any

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import ClassConditioning, Conditioning, FixedText, Unconditional
from ldmprobe.models.diffusion_model import DiffusionModel

SUPPORTED = ("DDPMPipeline", "DDIMPipeline", "LDMPipeline", "DiTPipeline", "StableDiffusionPipeline")


def load_pipeline(name: str, prompt: str = "") -> DiffusionModel:
    """The model in a diffusers pipeline folder or hub repository, ready to be probed or sampled.

    Args:
        name: folder or hub id of a DDPMPipeline, DDIMPipeline, LDMPipeline, DiTPipeline or StableDiffusionPipeline, with
            safetensors weights.
        prompt: for text-to-image pipelines, the same for every sample.

    Raises:
        ConfigurationError: no pipeline there, of another family, or without safetensors.
    """
    from diffusers import DiffusionPipeline

    try:
        family = DiffusionPipeline.load_config(name).get("_class_name")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{name!r} is no diffusers pipeline: there is no readable model_index.json, here or on the hub ({error})."
        ) from error
    if family not in SUPPORTED:
        raise ConfigurationError(
            f"{name} is a {family}, which cannot be probed yet; supported are {', '.join(SUPPORTED)}."
        )
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(
            name,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            **({"safety_checker": None} if "Stable" in family else {}),
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The {family} in {name} cannot be loaded: {error}") from error
    network = pipeline.transformer if family == "DiTPipeline" else pipeline.unet
    autoencoder = getattr(pipeline, "vqvae", None) or getattr(pipeline, "vae", None)
    size = network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return DiffusionModel(
        network.eval(),
        NoiseSchedule(pipeline.scheduler),
        (network.config.in_channels, height, width),
        LatentCodec(autoencoder),
        _conditioning(family, pipeline, prompt),
    )


def _conditioning(family: str, pipeline: Any, prompt: str) -> Conditioning:
    if family == "DiTPipeline":
        return ClassConditioning(pipeline.transformer.config.num_embeds_ada_norm)
    if family == "StableDiffusionPipeline":
        embeddings, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
        empty, _ = pipeline.encode_prompt("", "cpu", 1, False)
        return FixedText(embeddings.detach(), empty.detach())
    return Unconditional()
