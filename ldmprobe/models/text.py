"""Text as a condition: captions through the text encoders of a diffusers pipeline, or through a small one of one's own."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.conditioning import Conditioning
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.families import FAMILIES

_WIDTHS = ("caption_channels", "joint_attention_dim", "cross_attention_dim")  # what networks call the text's


class TextEncoder(nn.Module):
    """Captions → Condition, by the text encoders and tokenizers of a diffusers pipeline and its own ``encode_prompt``: one CLIP (Stable
    Diffusion), two (XL), T5 (PixArt, AuraFlow) or all three (SD 3).

    Args:
        pipeline: of one of the families with text; its network and autoencoder may be None.

    Attributes:
        image_size: (height, width) in pixels, which some networks are told; None for the size that the network was trained on.
    """

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.pipeline = pipeline  # no module: what of it is one is registered below, network and autoencoder are not
        self.family = FAMILIES[type(pipeline).__name__]
        parts = {name: part for name, part in pipeline.components.items() if part is not None}
        self.encoders = nn.ModuleDict({name: part for name, part in parts.items() if name.startswith("text_encoder")})
        self.tokenizers = {name: part for name, part in parts.items() if name.startswith("tokenizer")}
        self.image_size: tuple[int, int] | None = None
        modules: dict[str, Any] = dict(self.encoders)
        for name, encoder in modules.items():
            tokens, embeddings = (
                len(self.tokenizers[_tokenizer_of(name)]),
                encoder.get_input_embeddings().num_embeddings,
            )
            if tokens > embeddings:
                raise ConfigurationError(
                    f"The {_tokenizer_of(name)} has {tokens:,} tokens, the {name} embeds {embeddings:,}; they do not belong together: "
                    "take both from one pipeline."
                )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def components(self) -> dict[str, Any]:
        """Text encoders and tokenizers by the names that the pipeline has for them."""
        return {**self.encoders, **self.tokenizers}

    @property
    def description(self) -> dict[str, Any]:
        """What tells these encoders from others, as plain values; enough for :meth:`from_description`, but for the weights."""
        encoders: dict[str, Any] = dict(self.encoders)
        return {
            "family": type(self.pipeline).__name__,
            "encoders": {name: _encoder_description(encoder) for name, encoder in encoders.items()},
            "tokenizers": {name: _tokenizer_description(tokenizer) for name, tokenizer in self.tokenizers.items()},
        }

    @classmethod
    def from_description(cls, description: dict[str, Any], network: nn.Module) -> TextEncoder:
        """With fresh weights.

        Args:
            network: that is told the text; some pipelines ask its configuration.

        Raises:
            ConfigurationError: transformers has no such class.
        """
        import diffusers

        family = FAMILIES[description["family"]]
        parts = {name: _encoder_from(each) for name, each in description["encoders"].items()}
        parts |= {name: _tokenizer_from(each) for name, each in description["tokenizers"].items()}
        return TextEncoder(_pipeline(getattr(diffusers, description["family"]), parts | {family.network: network}))

    def forward(self, captions: Sequence[str]) -> Condition:
        """The condition of each caption, with the parameters' gradients where they are trained."""
        outputs = self._encode(list(captions), with_null=False)
        return self._named(outputs, null=False) | self._sized(len(captions))

    def null(self) -> Condition:
        """The condition, of shape (1, …), that stands for "none": what the pipeline takes where it has no negative prompt."""
        return self._named(self._encode([""], with_null=True), null=True) | self._sized(1)

    def _encode(self, captions: list[str], with_null: bool) -> tuple[Any, ...]:
        extra = {"prompt_2": None, "prompt_3": None} if "StableDiffusion3" in type(self.pipeline).__name__ else {}
        return self.pipeline.encode_prompt(
            prompt=captions,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=with_null,
            **extra,
        )

    def _named(self, outputs: tuple[Any, ...], null: bool) -> Condition:
        if self.family.null_alternates:
            chosen = outputs[int(null) :: 2]
        else:
            half = len(outputs) // 2
            chosen = outputs[half:] if null else outputs[:half]
        return {name: value for name, value in zip(self.family.text, chosen, strict=True) if name}

    def _sized(self, num_samples: int) -> Condition:
        network = getattr(self.pipeline, self.family.network, None)
        if network is None:
            return {}
        height, width = self.image_size or _trained_size(self.pipeline, network)
        rows = self.family.size(network.config, height, width)
        return {name: row.to(self.device).expand(num_samples, -1) for name, row in rows.items()}


class SmallCLIP(TextEncoder):
    """A small CLIP text model with random weights (Radford et al., 2021, arXiv:2103.00020), to be trained with the denoiser; and a tokenizer
    that knows ``words`` as one token each, other words by their letters.

    Args:
        words: separated by spaces; in lower case, as the tokenizer makes captions.
        width: of the text embeddings; the network's ``cross_attention_dim``.
        num_layers, num_heads: of the transformer.
        max_tokens: of a caption; longer ones are cut.
    """

    def __init__(
        self, words: str, width: int = 64, num_layers: int = 2, num_heads: int = 4, max_tokens: int = 16
    ) -> None:
        from diffusers import StableDiffusionPipeline
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

        alphabet = [*string.ascii_lowercase, string.ascii_lowercase]  # each letter at a word's end, and within one
        tokenizer = CLIPTokenizer().train_new_from_iterator([words.lower(), *alphabet], vocab_size=50_000)
        tokenizer.model_max_length = max_tokens
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            max_position_embeddings=max_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        parts = {"text_encoder": CLIPTextModel(config), "tokenizer": tokenizer}
        super().__init__(_pipeline(StableDiffusionPipeline, parts))


class TextConditioning(Conditioning):
    """Captions: batches need ``caption``, a list of strings, or ``condition``, what the encoder made of them beforehand.

    Args:
        encoder: of the captions.
        dropout: share of training samples whose caption becomes the null condition (Ho & Salimans, 2022, arXiv:2207.12598).
        prompts: of probes and samples: the i-th has ``prompts[i % len(prompts)]``.
        trained: train the text encoder, too. Its weights are not averaged (``ema_decay`` is the network's).

    Raises:
        ConfigurationError: dropout outside [0, 1), or no prompts.
    """

    def __init__(
        self, encoder: TextEncoder, dropout: float = 0.1, prompts: Sequence[str] = ("",), trained: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ConfigurationError(f"TextConditioning got dropout {dropout}; expected a number in [0, 1).")
        if isinstance(prompts, str) or not prompts:
            raise ConfigurationError(f"TextConditioning got prompts {prompts!r}; expected a list of one or more.")
        self.encoder = encoder.requires_grad_(trained)
        self.dropout, self.prompts, self.trained = dropout, tuple(prompts), trained
        self.train()

    def train(self, mode: bool = True) -> TextConditioning:
        """A frozen encoder stays in eval mode: it is no part of training."""
        super().train(mode and self.trained)
        return self

    def from_batch(self, batch: dict[str, Any]) -> Condition:
        if "condition" in batch:
            return batch["condition"]
        if "caption" not in batch:
            raise ConfigurationError("TextConditioning needs captions; set the data's `caption_column`.")
        return self.encoder(batch["caption"])

    def for_training(self, batch: dict[str, Any]) -> Condition:
        condition = self.from_batch(batch)
        first = next(iter(condition.values()))
        dropped = torch.rand(len(first), device=first.device) < self.dropout
        if not dropped.any():
            return condition
        null = self.encoder.null()
        return {
            name: torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), null[name].to(value.dtype), value)
            for name, value in condition.items()
        }

    def for_samples(self, sample_ids: Tensor) -> Condition:
        which = sample_ids.cpu() % len(self.prompts)
        used, row = which.unique(return_inverse=True)
        condition = self.encoder([self.prompts[i] for i in used.tolist()])
        return {name: value[row.to(value.device)] for name, value in condition.items()}

    def null(self, num_samples: int, device: torch.device) -> Condition:
        return {
            name: value.to(device).expand(num_samples, *value.shape[1:]) for name, value in self.encoder.null().items()
        }

    def prepare(self, network: nn.Module, data: Any) -> None:
        if data.reader.caption_column is None:
            raise ConfigurationError("TextConditioning needs captions; set the data's `caption_column`.")
        config: Any = getattr(network, "config", {})
        widths = [config[name] for name in _WIDTHS if config.get(name) is not None]
        if hasattr(network, "config") and (not widths or type(network).__name__ == "UNet2DModel"):
            raise ConfigurationError(
                f"{type(network).__name__} takes no text; use UNet2DConditionModel or a transformer that does."
            )
        self.encoder.image_size = tuple(data.image_shape[1:])
        with torch.no_grad():
            width = self.encoder([""])["encoder_hidden_states"].shape[-1]
        if widths and isinstance(widths[0], int) and widths[0] != width:
            name = next(name for name in _WIDTHS if config.get(name) is not None)
            raise ConfigurationError(
                f"The text encoder's embeddings are {width} wide and {type(network).__name__} has {name} {widths[0]}; make them equal."
            )


def _trained_size(pipeline: Any, network: Any) -> tuple[int, int]:
    """In pixels, as the pipeline's ``__call__`` takes it where it is not told."""
    size = getattr(pipeline, "default_sample_size", None) or network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def _pipeline(cls: Any, parts: dict[str, Any]) -> Any:
    """A pipeline of which only the text's parts are there."""
    expected, optional = cls._get_signature_keys(cls)
    settings = {"requires_safety_checker": False} if "requires_safety_checker" in optional else {}
    return cls(**dict.fromkeys(expected) | settings | parts)


def _tokenizer_of(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")


def _encoder_description(encoder: Any) -> dict[str, Any]:
    return {"class_name": type(encoder).__name__, "config": encoder.config.to_dict()}


def _encoder_from(description: dict[str, Any]) -> Any:
    cls = _transformers_class(description["class_name"])
    return cls(cls.config_class.from_dict(description["config"]))


def _tokenizer_description(tokenizer: Any) -> dict[str, Any]:
    """Class and files, as text."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}
    return {"class_name": type(tokenizer).__name__, "files": files}


def _tokenizer_from(description: dict[str, Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in description["files"].items():
            (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
        return _transformers_class(description["class_name"]).from_pretrained(folder, local_files_only=True)


def _transformers_class(name: str) -> Any:
    import transformers

    cls = getattr(transformers, name, None)
    bases = (transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase)
    if not (isinstance(cls, type) and issubclass(cls, bases)):
        raise ConfigurationError(
            f"The checkpoint needs transformers.{name}, which transformers {transformers.__version__} lacks."
        )
    return cls
