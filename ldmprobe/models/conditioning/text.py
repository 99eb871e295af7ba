"""Captions as a condition."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import get_type_hints

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import without_autocast
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning.base import Conditioning
from ldmprobe.models.conditioning.protocols import CardPart, ConditioningData, FrozenEncoder, Updates
from ldmprobe.models.conditioning.text_encoder import TextEncoder
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.families import FAMILIES, has_lora_format
from ldmprobe.types import Batch, Component, PlainValues

_MANY = 0.5  # share of captions with unknown words, above which text tells next to nothing


class TextConditioning(Conditioning):
    """Captions: batches need `caption`, a list of strings, or `condition`, what the encoder made of them beforehand.

    Args:
        encoder: the encoder of captions.
        dropout: share of training samples whose caption becomes the null condition.
        prompts: prompts of probes and samples: sample i has `prompts[i % len(prompts)]`.
        trained: train the text encoder, too. Its weights are not averaged (`ema_decay` is the network's).

    Attributes:
        kept: the conditions that a frozen encoder has made of prompts, and of None, which stands for no caption; each
            of shape (1, …).

    Raises:
        ConfigurationError: dropout outside [0, 1), or no prompts; or, before training, most captions have words that
            the tokenizer does not know.
    """

    columns = ("caption",)
    encodes = "caption"

    def __init__(
        self, encoder: TextEncoder, dropout: float = 0.1, prompts: Sequence[str] = ("",), trained: bool = False
    ) -> None:
        super().__init__(dropout)
        self.set_prompts(prompts)
        self.encoder = encoder
        if trained:
            encoder.unfreeze()
            encoder.freeze_unused_parameters()
        else:
            encoder.freeze()
        self.kept: dict[str | None, Condition] = {}
        self.register_load_state_dict_post_hook(TextConditioning._forget)
        self.train()

    def train(self, mode: bool = True) -> TextConditioning:
        """Keep a frozen encoder in eval mode: it is no part of training."""
        super().train(mode and self.trained)
        return self

    def set_prompts(self, prompts: Sequence[str]) -> None:
        if isinstance(prompts, str) or not prompts:
            raise ConfigurationError(f"TextConditioning got prompts {prompts!r}; expected a list of one or more.")
        self.prompts = tuple(prompts)

    # --- conditions ------------------------------------------------------------------------------------------------

    def from_batch(self, batch: Batch) -> Condition:
        if "condition" in batch:
            return batch["condition"]
        self.check_columns(batch)
        return self.encode(batch["caption"])

    def encode(self, captions: Sequence[str] | None) -> Condition:
        """Return the condition of each caption; of None, the null condition, of shape (1, …). A frozen encoder knows no
        gradients and no autocast, so that it makes what it would make for a cache.
        """
        if self.trained:
            return self.encoder.null() if captions is None else self.encoder(captions)
        with torch.no_grad(), without_autocast(self.encoder.device):
            return self.encoder.null() if captions is None else self.encoder(captions)

    def for_samples(self, sample_ids: Tensor) -> Condition:
        which = sample_ids.cpu() % len(self.prompts)
        used, row = which.unique(return_inverse=True)
        prompts = [self.prompts[i] for i in used.tolist()]
        condition = self.encode(prompts) if self.trained else self._encode_once(prompts)
        return {name: value[row.to(value.device)] for name, value in condition.items()}

    def as_columns(self, sample_ids: Tensor) -> Batch:
        return {"caption": [self.prompts[i % len(self.prompts)] for i in sample_ids.tolist()]}

    def null(self, num_samples: int, device: torch.device) -> Condition:
        null = self.encode(None) if self.trained else self._encode_once([None])
        return {name: value.to(device).expand(num_samples, *value.shape[1:]) for name, value in null.items()}

    def _encode_once(self, captions: Sequence[str | None]) -> Condition:
        """Return the condition of each caption, None for no caption, each of which is encoded but once."""
        for caption in captions:
            if caption not in self.kept:
                self.kept[caption] = self.encode(None if caption is None else [caption])
        rows, device = [self.kept[caption] for caption in captions], self.encoder.device
        condition = {name: torch.cat([row[name].to(device) for row in rows]) for name in rows[0]}
        return condition | self.encoder.size_condition(len(rows))

    def _forget(self, *_: object) -> None:
        """Drop what was kept where other weights may have been loaded into the encoder."""
        if self.encoder.reads_saved_weights:
            self.kept.clear()

    # --- before training -------------------------------------------------------------------------------------------

    def prepare(self, network: nn.Module, data: ConditioningData, codec: LatentCodec) -> None:
        super().prepare(network, data, codec)
        height, width = data.image_shape[1:]
        self.encoder.set_image_size(network, height, width)
        self._check_known(data.checked_captions)
        for (longest, cut), tokenizers in self.encoder.truncated(data.checked_captions).items():
            if cut:
                warnings.warn(
                    f"{cut} of the {len(data.checked_captions)} captions that were checked are cut at {longest} tokens "
                    f"({', '.join(tokenizers)}): what comes after, the text encoder does not see. Put what matters "
                    "first.",
                    stacklevel=2,
                )

    def _check_known(self, captions: list[str]) -> None:
        """Refuse captions if most have words that the tokenizer does not know, and warn of them if a few have."""
        unknown = [words for words in self.encoder.unknown(captions) if words]
        if not unknown:
            return
        examples = ", ".join(map(repr, dict.fromkeys(words[0][:100] for words in unknown[:5])))
        told = (
            f"{len(unknown)} of the {len(captions)} captions that were checked have words that the tokenizer does not "
            f"know, such as {examples}: to the text encoder, unknown letters are all the same. Spell them in letters "
            "that it knows (SmallCLIP: a to z and digits), or take an encoder of their language."
        )
        if len(unknown) > _MANY * len(captions):
            raise ConfigurationError(told)
        warnings.warn(told, stacklevel=3)

    def assumed(self, data: ConditioningData) -> PlainValues:
        if "caption" in data.batch_names:
            return {}
        prompt, *others = self.prompts
        if others:
            raise ConfigurationError(
                f"The data has captions in no column that was named, and there are {1 + len(others)} prompts; set the "
                "data's `caption_column`, or give one --prompt, which all its images then have."
            )
        return {"caption": prompt}

    # --- checkpoints -----------------------------------------------------------------------------------------------

    @property
    def description(self) -> PlainValues:
        return {"prompts": list(self.prompts), "encoder": self.encoder.description}

    @property
    def spec(self) -> PlainValues:
        return {"encoder": self.encoder.description}

    @property
    def finetuned_spec(self) -> PlainValues:
        return {"pipeline": type(self.encoder.pipeline).__name__}

    @property
    def run_spec(self) -> PlainValues:
        size = {name: value.tolist() for name, value in self.encoder.size.items()}
        return {**super().run_spec, "prompts": list(self.prompts), "size": size}

    @classmethod
    def from_spec(cls, spec: PlainValues, network: nn.Module) -> TextConditioning:
        return cls(TextEncoder.from_description(spec["encoder"], network))

    def restore(self, run_spec: PlainValues) -> None:
        super().restore(run_spec)
        self.set_prompts(run_spec["prompts"])
        self.encoder.size = {name: torch.tensor(value) for name, value in run_spec["size"].items()}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        return self.encoder.weights()

    # --- finetuning ------------------------------------------------------------------------------------------------

    def for_finetuning(
        self, dropout: float, prompts: Sequence[str] | None, train_text_encoder: bool
    ) -> TextConditioning:
        made = TextConditioning(
            self.encoder, dropout, self.prompts if prompts is None else prompts, trained=train_text_encoder
        )
        made._knew_null = self.knows_null
        return made

    @property
    def trained_networks(self) -> list[nn.Module]:
        return self.encoder.trained_networks

    def add_updates(self, updates: Updates) -> None:
        """Train low-rank updates of the attention of the encoders that diffusers has a format for (CLIP, not the T5 of
        Stable Diffusion 3, which stays frozen), or of all where there are none (PixArt's and AuraFlow's T5).
        """
        encoder = self.encoder
        encoder.unfreeze([name for name in encoder.encoders if has_lora_format(encoder.pipeline, name)])
        for network in self.trained_networks:
            updates.add_to_text(network)
        encoder.freeze_unused_parameters()
        self.train()

    # --- diffusers pipelines ---------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        return f"the text of a {type(self.encoder.pipeline).__name__}"

    def pipeline_name(self, network: str, latents: bool, flow: bool) -> str | None:
        pipeline = type(self.encoder.pipeline)
        parts = get_type_hints(pipeline.__init__)
        fits = parts[self.encoder.family.network].__name__ == network
        return pipeline.__name__ if fits and parts["scheduler"].__name__.startswith("FlowMatch") == flow else None

    def assemble(self, name: str, parts: PlainValues) -> Component:
        own, names = self.encoder.pipeline, ("requires_safety_checker", *FAMILIES[name].settings)
        settings = {setting: own.config[setting] for setting in names if setting in own.config}
        return super().assemble(name, {**own.components, **self.encoder.components, **settings, **parts})

    def card(self, pipeline: Component, latent_shape: tuple[int, ...]) -> CardPart:
        outlines = self.encoder.meta_modules.values()
        sizes = "; ".join(
            f"{type(o).__name__}, {sum(p.numel() for p in o.parameters()):,} parameters" for o in outlines
        )
        height, width = (size * pipeline.vae_scale_factor for size in latent_shape[1:])
        prompt = next((prompt for prompt in self.prompts if prompt), "a photo")
        size = f", height={height}, width={width}{self.encoder.family.as_trained}"
        return CardPart("text-to-image", (("Text", sizes),), f"{prompt!r}, num_images_per_prompt=4", size)

    # --- cache -----------------------------------------------------------------------------------------------------

    @property
    def frozen_encoder(self) -> FrozenEncoder | None:
        return None if self.trained else self

    @property
    def encoder_key(self) -> PlainValues:
        size = {name: value.tolist() for name, value in self.encoder.size.items()}
        return {
            "encoders": fingerprint(self.encoder.description),
            "precision": self.encoder.precision,
            "size": size,
            "clean_caption": self.encoder.cleans_captions,
        }

    @property
    def asked(self) -> tuple[str | None, ...]:
        return (None, *self.prompts)
