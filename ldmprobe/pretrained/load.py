"""A diffusers pipeline, from a folder or the hub, taken apart into a DiffusionModel. Only safetensors are read, and no
code that it brings.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch

import ldmprobe.models.preconditioned  # noqa: F401 (so that its wrappers are known by name)
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.errors import ConfigurationError, needing
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning, TextConditioning, TextEncoder, Unconditional
from ldmprobe.models.conditioning.label import conditioning_of_pipeline
from ldmprobe.models.conditioning.text_encoder import text_pipeline
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.families import FAMILIES, family_of
from ldmprobe.models.latent_scale import SCALING
from ldmprobe.models.lazy import LazyModule
from ldmprobe.models.library import class_named
from ldmprobe.models.model_folder import ModelFolder
from ldmprobe.models.wrapper import wrapped
from ldmprobe.pretrained.beside_text import beside_text
from ldmprobe.pretrained.files import check_files, find_pipeline, refusal
from ldmprobe.pretrained.source import Precision, Source
from ldmprobe.types import Component, PlainValues

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LIBRARIES = ("diffusers", "transformers")
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")
_DISPENSABLE = ("text_encoder_3", "tokenizer_3")  # Stable Diffusion 3's T5, without which it encodes text, too


def load_pipeline(source: Source | str, prompts: Sequence[str] = ("",)) -> DiffusionModel:
    """Load a diffusers pipeline, ready to be probed, sampled or finetuned; its autoencoder and text encoders are read
    when first needed.

    Args:
        source: a pipeline of one of ``FAMILIES``, with safetensors weights.
        prompts: for text-to-image pipelines: sample i has ``prompts[i % len(prompts)]``.

    Raises:
        ConfigurationError: no pipeline there, of another family, without a component that it names, without
            safetensors, or without this variant; a hub repository that is neither cached nor within reach.
    """
    source = Source.of(source)
    read = read_pipeline(source)
    try:
        return _taken_apart(read, prompts)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"The {type(read.pipeline).__name__} in {source.name} cannot be taken apart: "
            f"{error or type(error).__name__}"
        ) from error


@dataclass(frozen=True)
class ReadPipeline:
    """A diffusers pipeline with its network in float32.

    Attributes:
        frozen: autoencoder and text encoders by name; in the pipeline are their outlines.
    """

    pipeline: Component
    frozen: dict[str, LazyModule]


def read_pipeline(source: Source, without: Sequence[str] = ()) -> ReadPipeline:
    """Read the diffusers pipeline in a folder or hub repository.

    Args:
        without: names of components that are not to be read.

    Raises:
        ConfigurationError: as ``load_pipeline``'s.
    """
    from diffusers import DiffusionPipeline

    name, revision, variant = source.name, source.revision, source.variant
    place, files = find_pipeline(name, revision, source.local_files_only)
    try:
        index = dict(DiffusionPipeline.load_config(place, revision=revision))
    except Exception as error:  # diffusers raises many kinds, all meaning "not loadable"
        raise ConfigurationError(refusal(name, revision, error)) from error
    class_name = str(index.get("_class_name"))
    family = family_of(class_name, name)
    _check_components(name, index)
    absent = [part for part in _DISPENSABLE if part in index and list(index[part]) == [None, None]]
    unread = dict.fromkeys(part for part in (*_UNUSED, *without, *absent) if part in index)
    read = {part: entry for part, entry in index.items() if part not in unread}
    check_files(name, read, files, variant)
    try:
        folder = Path(place)
        if not folder.is_dir():
            folder = Path(
                DiffusionPipeline.download(place, revision=revision, variant=variant, use_safetensors=True, **unread)
            )
        frozen = {
            part: LazyModule(
                ModelFolder(folder / part, class_named(*entry), variant),
                torch.float32 if part == family.autoencoder else _DTYPES[source.text_precision],
            )
            for part, entry in read.items()
            if (part == family.autoencoder or part.startswith("text_encoder")) and entry[1] is not None
        }
        given: PlainValues = {part: each.meta_module for part, each in frozen.items()}
        if entry := read.get(family.network):
            given[family.network] = ModelFolder(folder / family.network, class_named(*entry), variant).load()
        pipeline = DiffusionPipeline.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=True,
            trust_remote_code=False,
            low_cpu_mem_usage=False,
            **unread,
            **given,
        )
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"The {class_name} in {name} cannot be loaded: {error or type(error).__name__}"
        ) from error
    return ReadPipeline(pipeline, frozen)


class PretrainedText(TextEncoder):
    """The text encoders of a pretrained pipeline, for a network of one's own.

    Args:
        pipeline: folder or hub id.
        revision, variant, local_files_only, text_precision: as in ``Source``.

    Raises:
        ConfigurationError: as ``load_pipeline``; or a pipeline without text.
    """

    def __init__(
        self,
        pipeline: str,
        revision: str | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
        text_precision: Precision = "float32",
    ) -> None:
        others = {part for family in FAMILIES.values() for part in (family.network, family.autoencoder) if part}
        source = Source(pipeline, revision, variant, local_files_only, text_precision)
        read = read_pipeline(source, sorted(others))
        if not FAMILIES[type(read.pipeline).__name__].text:
            raise ConfigurationError(f"{pipeline} is a {type(read.pipeline).__name__}, which has no text encoder.")
        if "text_encoder_3" in read.pipeline.components and read.pipeline.text_encoder_3 is None:
            raise ConfigurationError(
                f"{pipeline} is without its text_encoder_3, for which only its own network has a substitute; give one "
                "with it."
            )
        super().__init__(text_part(read.pipeline), read.frozen)


def text_part(pipeline: Component) -> Component:
    """Return the pipeline that encodes text as ``pipeline`` does, and has the network of text alone, or none."""
    text_of = FAMILIES[type(pipeline).__name__].text_of
    parts = ("text_encoder", "tokenizer")
    if not text_of:
        return pipeline
    return text_pipeline(class_named("diffusers", text_of), {part: pipeline.components[part] for part in parts})


def _check_components(name: str, index: PlainValues) -> None:
    """Refuse a lack of components, and those of other libraries or with code of their own."""
    for component, entry in index.items():
        network = component in ("unet", "transformer", "scheduler")
        if component.startswith("_") or component in _UNUSED or not (network or isinstance(entry, (list, tuple))):
            continue
        listed = list(entry) if isinstance(entry, (list, tuple)) else [entry]
        if listed == [None, None] and not network:
            if component not in (*_DISPENSABLE, *class_named("diffusers", index["_class_name"])._optional_components):
                raise ConfigurationError(
                    f"{name} is without its {component} (null in model_index.json), which a {index['_class_name']} "
                    "needs; save it with one."
                )
            continue
        if len(listed) != 2 or listed[0] not in _LIBRARIES or re.match("Auto(?!encoder)", str(listed[1])):
            raise ConfigurationError(
                f"{name} asks for {'.'.join(map(str, listed))} as its {component}; expected a class of "
                f"{' or '.join(_LIBRARIES)}. Code that a pipeline brings along is never run."
            )
        with needing("transformers", f"{name}, for its {component},"):
            import_module(listed[0])
        if class_named(listed[0], str(listed[1])) is None:
            raise ConfigurationError(
                f"{name} asks for {'.'.join(map(str, listed))} as its {component}, which {listed[0]} "
                f"{version(listed[0])}, installed here, lacks. If a newer version has this class, install that; if it "
                "is code that the pipeline brings along, it is never run."
            )


def _taken_apart(read: ReadPipeline, prompts: Sequence[str]) -> DiffusionModel:
    pipeline = read.pipeline
    family = FAMILIES[type(pipeline).__name__]
    network, conditioning = pipeline.components[family.network], _conditioning(read, prompts)
    autoencoder, channels = read.frozen.get(family.autoencoder or ""), network.config.in_channels
    config = {} if autoencoder is None else autoencoder.meta_module.config
    encoded = config.get("vq_embed_dim") or config.get("latent_channels", channels)
    own, each = family.beside
    if beside := own + each * encoded:
        if encoded + beside != channels:
            raise ConfigurationError(
                f"The {family.network} takes {channels} channels, and that of a {type(pipeline).__name__} takes "
                f"{encoded + beside}: {encoded} of the latents and {beside} of what is told beside them. If it is told "
                f"text alone, save it as a {family.text_of}."
            )
        channels = encoded
    if encoded != channels:
        raise ConfigurationError(
            f"The {family.network} takes latents of {channels} channels, those of the {family.autoencoder} have "
            f"{encoded}; they do not belong together: take both from one pipeline."
        )
    size = network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    schedule = as_schedule(pipeline.scheduler)
    return DiffusionModel(
        wrapped(network.eval(), schedule.network_wrapper),
        schedule,
        (channels, height, width),
        _codec(type(pipeline).__name__, autoencoder),
        conditioning,
    )


def _codec(pipeline: str, autoencoder: LazyModule | None) -> LatentCodec:
    """Return the codec that scales latents as the pipeline does, and warn of settings that it does not read."""
    scaling = FAMILIES[pipeline].scaling
    if autoencoder is None:
        return LatentCodec()
    config = autoencoder.meta_module.config
    unread = [name for name in SCALING if name not in scaling and config.get(name) not in (None, 0)]
    if unread:
        warnings.warn(
            f"The autoencoder's config has {', '.join(f'{name} {config[name]}' for name in unread)}, which a "
            f"{pipeline} does not read, so that latents are not shifted or scaled by it here either. If the network "
            "was trained with it, give the network and `LatentCodec` to LatentDiffusion yourself.",
            stacklevel=3,
        )
    return LatentCodec(autoencoder, scaling=scaling)


def _conditioning(read: ReadPipeline, prompts: Sequence[str]) -> Conditioning:
    family = FAMILIES[type(read.pipeline).__name__]
    if family.text:
        text = TextConditioning(TextEncoder(text_part(read.pipeline), read.frozen), prompts=prompts)
        return beside_text(read.pipeline, text)
    classes = family.num_classes(read.pipeline)
    if classes is None:
        return Unconditional()
    return conditioning_of_pipeline(read.pipeline.components[family.network], classes)
