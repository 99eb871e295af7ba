"""Captions to conditions, through the text encoders and tokenizers of a diffusers pipeline."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.conditioning.text_description import (
    encoder_description,
    encoder_from,
    tokenizer_description,
    tokenizer_from,
)
from ldmprobe.models.denoiser import Condition, config_of
from ldmprobe.models.families import FAMILIES
from ldmprobe.models.lazy import LazyModule
from ldmprobe.models.library import class_named, unlogged
from ldmprobe.types import Component, PlainValues

_USED = 0.9  # at least, of an encoder's embeddings by its tokenizer; of T5's 32,128 it is 32,100


class TextEncoder(nn.Module):
    """Turns captions into conditions with the text encoders and tokenizers of a diffusers pipeline and its own
    `encode_prompt`: one CLIP (Stable Diffusion), two (XL), T5 (PixArt, AuraFlow) or all three (SD 3).

    Args:
        pipeline: a pipeline of one of the families with text; its network and autoencoder may be None.
        frozen: its text encoders by name, where they are not to be trained; they are read when a caption is to be
            encoded.

    Attributes:
        encoders: the text encoders by the names that the pipeline has for them; the frozen ones are each a LazyModule.
        size: what the pipeline's network is told of the image's size besides the text, of shape (1, …): the size that
            it was trained on, until `set_image_size` says another.

    Raises:
        ConfigurationError: a tokenizer that does not belong to its text encoder.
    """

    def __init__(self, pipeline: Component, frozen: dict[str, LazyModule] | None = None) -> None:
        super().__init__()
        self.pipeline = pipeline  # not a module; its encoders are registered below, its network and autoencoder are not
        self.family = FAMILIES[type(pipeline).__name__]
        there = {name: part for name, part in pipeline.components.items() if part is not None}
        parts = there | (frozen or {})
        self.encoders = nn.ModuleDict({name: part for name, part in parts.items() if name.startswith("text_encoder")})
        self.tokenizers = {name: part for name, part in parts.items() if name.startswith("tokenizer")}
        self.size: Condition = {}
        if network := there.get(self.family.network):
            self.set_image_size(network, *_trained_size(pipeline, network))
        for name, encoder in self.meta_modules.items():
            _check_belonging(name, encoder, self.tokenizers[_tokenizer_of(name)])

    def freeze(self) -> None:
        """Freeze all encoders."""
        for name, encoder in self.encoders.items():
            if not isinstance(encoder, LazyModule):
                self.encoders[name] = LazyModule(encoder)

    def unfreeze(self, names: Sequence[str] = ()) -> None:
        """Load the encoders of these names, by default all, and train them.

        Raises:
            ConfigurationError: they are in half precision.
        """
        if self.precision != "float32":
            raise ConfigurationError(
                f"text_precision is {self.precision}, which is too coarse for text encoders in training; leave it out "
                "(of a checkpoint in `pretrained`: where that was trained), or do not train them."
            )
        for name, encoder in self._loaded.items():
            if name in (names or self.encoders):
                self.encoders[name] = encoder.requires_grad_(True)

    def freeze_unused_parameters(self) -> None:
        """Freeze the parameters in training on which no condition depends, such as the last layer of Stable Diffusion
        XL's first encoder: DistributedDataParallel would wait for their gradients.
        """
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            outputs = [value.sum() for value in self([""]).values() if value.requires_grad]
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(outputs, parameters, allow_unused=True), strict=True
        ):
            parameter.requires_grad_(gradient is not None)

    @property
    def trained_networks(self) -> list[nn.Module]:
        """The encoders that are not frozen."""
        return [encoder for encoder in self.encoders.values() if not isinstance(encoder, LazyModule)]

    @property
    def reads_saved_weights(self) -> bool:
        """Return whether a state dict may bring other weights to a frozen encoder."""
        return any(encoder.saved for encoder in self.encoders.values() if isinstance(encoder, LazyModule))

    @property
    def device(self) -> torch.device:
        return next(iter(self.encoders.values())).device  # type: ignore[return-value]

    @property
    def components(self) -> PlainValues:
        """Text encoders and tokenizers by the names that the pipeline has for them."""
        return {**self._loaded, **self.tokenizers}

    @property
    def meta_modules(self) -> PlainValues:
        """The encoders, without weights where they are read from files."""
        return {
            name: part.meta_module if isinstance(part, LazyModule) else part for name, part in self.encoders.items()
        }

    @property
    def _loaded(self) -> PlainValues:
        return {name: part.network if isinstance(part, LazyModule) else part for name, part in self.encoders.items()}

    @property
    def precision(self) -> str:
        """The dtype that the encoders compute in, such as "float32" or "bfloat16"."""
        return ", ".join(sorted({str(encoder.dtype).removeprefix("torch.") for encoder in self.encoders.values()}))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights of all encoders by name, without loading those that are read from files."""
        for name, encoder in self.encoders.items():
            own = encoder.weights() if isinstance(encoder, LazyModule) else encoder.state_dict().items()
            yield from ((f"{name}.{key}", value) for key, value in own)

    @cached_property
    def description(self) -> PlainValues:
        """Plain values that tell these encoders from others, wherever they are and whatever version wrote them;
        `from_description` needs no more, but for the weights.
        """
        return {
            "family": type(self.pipeline).__name__,
            "settings": {name: self.pipeline.config[name] for name in self.family.settings},
            "encoders": {name: encoder_description(encoder) for name, encoder in self.meta_modules.items()},
            "tokenizers": {name: tokenizer_description(tokenizer) for name, tokenizer in self.tokenizers.items()},
        }

    @classmethod
    def from_description(cls, description: PlainValues, network: nn.Module) -> TextEncoder:
        """Build the described encoders with fresh weights.

        Args:
            network: the network that is told the text; some pipelines ask its configuration.

        Raises:
            ConfigurationError: transformers has no such class.
        """
        family = FAMILIES[description["family"]]
        parts = {name: encoder_from(each) for name, each in description["encoders"].items()}
        parts |= {name: tokenizer_from(each) for name, each in description["tokenizers"].items()}
        parts |= description["settings"] | {family.network: network}
        return TextEncoder(text_pipeline(class_named("diffusers", description["family"]), parts))

    def set_image_size(self, network: nn.Module, height: int, width: int) -> None:
        """Set the size in pixels of the images that `network` is told of."""
        self.size = self.family.size(config_of(network), height, width)

    def forward(self, captions: Sequence[str]) -> Condition:
        """Return the condition of each caption in float32, with the parameters' gradients where they are trained."""
        return self._encode(list(captions), null=False) | self.size_condition(len(captions))

    def null(self) -> Condition:
        """Return the condition, of shape (1, …), that the pipeline takes where it has no negative prompt."""
        return self._encode([""], null=True) | self.size_condition(1)

    def size_condition(self, num_samples: int) -> Condition:
        """Return `size` for each of so many samples."""
        return {name: row.to(self.device).expand(num_samples, -1) for name, row in self.size.items()}

    def _encode(self, captions: list[str], null: bool) -> Condition:
        """Return what the pipeline makes of captions, or beside them of no negative prompt, by the network's names."""
        there = self.pipeline.components
        for name, encoder in self._loaded.items():
            if there[name] is not encoder:
                setattr(self.pipeline, name, encoder)
        with unlogged(_said_in_prepare, type(self.pipeline).__module__, "transformers.tokenization_utils_base"):
            outputs = self.pipeline.encode_prompt(
                prompt=captions,
                device=self.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=null,
                **dict.fromkeys(self.family.further_prompts),
                **({"clean_caption": True} if self.cleans_captions else {}),
            )
        if self.family.null_alternates:
            chosen = outputs[int(null) :: 2]
        else:
            half = len(outputs) // 2
            chosen = outputs[half:] if null else outputs[:half]
        named = {name: value for name, value in zip(self.family.text, chosen, strict=True) if name}
        return {name: value.float() if value.is_floating_point() else value for name, value in named.items()}

    @property
    def cleans_captions(self) -> bool:
        """Return whether captions are cleaned, as PixArt's own call does where the packages are installed."""
        from diffusers.utils import is_bs4_available, is_ftfy_available

        # Without them diffusers does not clean either, and would say so for every batch.
        asked = inspect.signature(self.pipeline.encode_prompt).parameters
        return "clean_caption" in asked and is_bs4_available() and is_ftfy_available()

    def truncated(self, captions: list[str]) -> dict[tuple[int, int], list[str]]:
        """Return the tokenizers that cut captions, by (most tokens, how many captions have more)."""
        of_t5 = inspect.signature(self.pipeline.encode_prompt).parameters.get("max_sequence_length")
        found: dict[tuple[int, int], list[str]] = {}
        for name, tokenizer in self.tokenizers.items():
            longest = tokenizer.model_max_length
            if of_t5 is not None and "CLIP" not in type(tokenizer).__name__:
                longest = of_t5.default
            tokens = tokenizer(captions, truncation=False, verbose=False).input_ids if captions else []
            found.setdefault((longest, sum(len(each) > longest for each in tokens)), []).append(name)
        return found

    def unknown(self, captions: list[str]) -> list[list[str]]:
        """Return the words of each caption, without punctuation, that no tokenizer knows: of what it does not know of
        them, it makes one token, whatever that is.
        """
        words = [_words(caption) for caption in captions]
        unknown = {word for each in words for word in each}
        for tokenizer in self.tokenizers.values():
            asked = sorted(unknown)
            tokens = tokenizer(asked, add_special_tokens=False, verbose=False).input_ids if asked else []
            unknown = {word for word, ids in zip(asked, tokens, strict=True) if tokenizer.unk_token_id in ids}
        return [[word for word in each if word in unknown] for each in words]


def _words(caption: str) -> list[str]:
    return "".join(" " if unicodedata.category(letter).startswith("P") else letter for letter in caption).split()


def text_pipeline(cls: Component, parts: PlainValues) -> Component:
    """Return a pipeline of class `cls` of which only `parts` are there."""
    expected, optional = cls._get_signature_keys(cls)
    settings = {"requires_safety_checker": False} if "requires_safety_checker" in optional else {}
    return cls(**dict.fromkeys(expected) | settings | parts)


def _said_in_prepare(message: str) -> bool:
    return "was truncated because" in message or "Token indices sequence length is longer" in message


def _trained_size(pipeline: Component, network: Component) -> tuple[int, int]:
    """Return the image size in pixels that the pipeline's `__call__` takes by default."""
    size = getattr(pipeline, "default_sample_size", None) or network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def _tokenizer_of(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")


def _check_belonging(name: str, encoder: Component, tokenizer: Component) -> None:
    """Refuse a tokenizer that is not this encoder's."""
    tokens, embeddings = len(tokenizer), encoder.get_input_embeddings().num_embeddings
    if not _USED * embeddings <= tokens <= embeddings:
        raise ConfigurationError(
            f"The {_tokenizer_of(name)} has {tokens:,} tokens, the {name} embeds {embeddings:,}; they do not belong "
            "together: take both from one pipeline."
        )
    longest, positions = tokenizer.model_max_length, encoder.config.to_dict().get("max_position_embeddings")
    if positions is not None and longest > positions:
        raise ConfigurationError(
            f"The {_tokenizer_of(name)} makes captions of up to {longest:,} tokens, the {name} takes {positions:,}; "
            "write "
            f'`"model_max_length": {positions}` in {_tokenizer_of(name)}/tokenizer_config.json.'
        )
