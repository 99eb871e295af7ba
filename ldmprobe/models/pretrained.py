"""A diffusers pipeline, from a folder or the hub, taken apart into a DiffusionModel. Only safetensors are read, and no code that it brings."""

from __future__ import annotations

import re
from typing import Any

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import ClassConditioning, Conditioning, FixedText, Unconditional
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.pipeline import with_num_classes

SUPPORTED = ("DDPMPipeline", "DDIMPipeline", "LDMPipeline", "DiTPipeline", "StableDiffusionPipeline")
_LIBRARIES = ("diffusers", "transformers")


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
        index = dict(DiffusionPipeline.load_config(name))
    except Exception as error:  # diffusers raises many kinds, all meaning "not loadable"
        raise ConfigurationError(
            f"{name!r} is no diffusers pipeline: there is no readable model_index.json, here or on the hub ({error})."
        ) from error
    family = str(index.get("_class_name"))
    if family not in SUPPORTED:
        raise ConfigurationError(
            f"{name} is a {family}, which cannot be probed yet; supported are {', '.join(SUPPORTED)}."
        )
    _check_components(name, index)
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            name,
            use_safetensors=True,
            trust_remote_code=False,
            low_cpu_mem_usage=False,
            **({"safety_checker": None} if "Stable" in family else {}),
        )
        return _taken_apart(pipeline, family, prompt)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(f"The {family} in {name} cannot be loaded: {error or type(error).__name__}") from error


def _check_components(name: str, index: dict[str, Any]) -> None:
    """Refuse components that are not of diffusers or transformers, or that bring code of their own."""
    for component, entry in index.items():
        network = component in ("unet", "transformer", "scheduler")
        if (
            component.startswith("_")
            or component == "safety_checker"
            or not (network or isinstance(entry, (list, tuple)))
        ):
            continue
        listed = list(entry) if isinstance(entry, (list, tuple)) else [entry]
        if listed == [None, None] and not network:  # a part that the pipeline does without
            continue
        if len(listed) != 2 or listed[0] not in _LIBRARIES or re.match("Auto(?!encoder)", str(listed[1])):
            raise ConfigurationError(
                f"{name} asks for {'.'.join(map(str, listed))} as its {component}; expected a class of {' or '.join(_LIBRARIES)}. "
                "Code that a pipeline brings along is never run."
            )


def _taken_apart(pipeline: Any, family: str, prompt: str) -> DiffusionModel:
    network = pipeline.transformer if family == "DiTPipeline" else pipeline.unet
    if family == "DiTPipeline":
        classes = network.config.num_embeds_ada_norm
        labelled = max(pipeline.labels.values(), default=classes - 1) + 1
        if labelled < classes:  # as_pipeline has padded it
            with_num_classes(network, labelled)
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
