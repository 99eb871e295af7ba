"""Text as a condition: captions through the text encoders of a diffusers pipeline, or through a small one of one's own."""

from __future__ import annotations

import inspect
import json
import logging
import string
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.conditioning import Conditioning
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.families import FAMILIES
from ldmprobe.models.frozen import Frozen

_TOLD_IN_PREPARE = ("was truncated because", "Token indices sequence length is longer")
_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"  # CLIP's
_USED = 0.9  # at least, of an encoder's embeddings by its tokenizer; of T5's 32,128 it is 32,100
# What a configuration says of where it was read, and by whom:
_OF_THE_FILE = (
    "_name_or_path",
    "name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "is_local",
    "local_files_only",
)


class TextEncoder(nn.Module):
    """Captions → Condition, by the text encoders and tokenizers of a diffusers pipeline and its own ``encode_prompt``: one CLIP (Stable
    Diffusion), two (XL), T5 (PixArt, AuraFlow) or all three (SD 3).

    Args:
        pipeline: of one of the families with text; its network and autoencoder may be None.
        frozen: its text encoders by name, where they are not to be trained; they are read when a caption is to be encoded.

    Attributes:
        encoders: by the names that the pipeline has for them, those that are frozen each as a Frozen.
        size: what the pipeline's network is told of the image's size besides the text, of shape (1, …): that it was trained on, until
            :meth:`made_for` says another.

    Raises:
        ConfigurationError: a tokenizer that does not belong to its text encoder.
    """

    def __init__(self, pipeline: Any, frozen: dict[str, Frozen] | None = None) -> None:
        super().__init__()
        self.pipeline = pipeline  # no module: what of it is one is registered below, network and autoencoder are not
        self.family = FAMILIES[type(pipeline).__name__]
        parts = {name: part for name, part in pipeline.components.items() if part is not None} | (frozen or {})
        self.encoders = nn.ModuleDict({name: part for name, part in parts.items() if name.startswith("text_encoder")})
        self.tokenizers = {name: part for name, part in parts.items() if name.startswith("tokenizer")}
        network = getattr(pipeline, self.family.network, None)
        self.size: Condition = {} if network is None else self._size(network, *_trained_size(pipeline, network))
        for name, encoder in self.outlines.items():
            _check_belonging(name, encoder, self.tokenizers[_tokenizer_of(name)])

    def freeze(self) -> None:
        """None of the encoders is trained."""
        for name, encoder in self.encoders.items():
            if not isinstance(encoder, Frozen):
                self.encoders[name] = Frozen(encoder)

    def thaw(self, names: Sequence[str] = ()) -> None:
        """These of the encoders are trained, by default all, and loaded for it.

        Raises:
            ConfigurationError: they are in half precision.
        """
        if self.precision != "float32":
            raise ConfigurationError(
                f"text_precision is {self.precision}, which is too coarse for text encoders in training; leave it out (of a checkpoint in "
                "`pretrained`: where that was trained), or do not train them."
            )
        for name, encoder in self._loaded.items():
            if name in (names or self.encoders):
                self.encoders[name] = encoder.requires_grad_(True)

    def train_only_what_is_used(self) -> None:
        """Of the parameters in training, freeze those on which no condition depends, such as the last layer of Stable Diffusion XL's first
        encoder: DistributedDataParallel would wait for their gradients."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            told = [value.sum() for value in self([""]).values() if value.requires_grad]
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(told, parameters, allow_unused=True), strict=True
        ):
            parameter.requires_grad_(gradient is not None)

    @property
    def device(self) -> torch.device:
        return next(iter(self.encoders.values())).device  # type: ignore[return-value]

    @property
    def components(self) -> dict[str, Any]:
        """Text encoders and tokenizers by the names that the pipeline has for them."""
        return {**self._loaded, **self.tokenizers}

    @property
    def outlines(self) -> dict[str, Any]:
        """The encoders, those that are read from files without weights."""
        return {name: part.outline if isinstance(part, Frozen) else part for name, part in self.encoders.items()}

    @property
    def _loaded(self) -> dict[str, Any]:
        return {name: part.network if isinstance(part, Frozen) else part for name, part in self.encoders.items()}

    @property
    def precision(self) -> str:
        """That they encode in, such as "float32" or "bfloat16"."""
        return ", ".join(sorted({str(encoder.dtype).removeprefix("torch.") for encoder in self.encoders.values()}))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Of all encoders by name; of those that are read from files without loading them."""
        for name, encoder in self.encoders.items():
            own = encoder.weights() if isinstance(encoder, Frozen) else encoder.state_dict().items()
            yield from ((f"{name}.{key}", value) for key, value in own)

    @cached_property
    def description(self) -> dict[str, Any]:
        """What tells these encoders from others, as plain values that hang on no place and no version; enough for
        :meth:`from_description`, but for the weights."""
        return {
            "family": type(self.pipeline).__name__,
            "settings": {name: self.pipeline.config[name] for name in self.family.settings},
            "encoders": {name: _encoder_description(encoder) for name, encoder in self.outlines.items()},
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
        parts |= description["settings"] | {family.network: network}
        return TextEncoder(_pipeline(getattr(diffusers, description["family"]), parts))

    def made_for(self, network: nn.Module, height: int, width: int) -> None:
        """Say which network is told the text, of images of how many pixels."""
        self.size = self._size(network, height, width)

    def forward(self, captions: Sequence[str]) -> Condition:
        """The condition of each caption in float32, with the parameters' gradients where they are trained."""
        outputs = self._encode(list(captions), with_null=False)
        return self._named(outputs, null=False) | self.sized(len(captions))

    def null(self) -> Condition:
        """The condition, of shape (1, …), that stands for "none": what the pipeline takes where it has no negative prompt."""
        return self._named(self._encode([""], with_null=True), null=True) | self.sized(1)

    def sized(self, num_samples: int) -> Condition:
        """What of the condition is no text: :attr:`size`, for each sample."""
        return {name: row.to(self.device).expand(num_samples, -1) for name, row in self.size.items()}

    def _encode(self, captions: list[str], with_null: bool) -> tuple[Any, ...]:
        for name, encoder in self._loaded.items():
            if getattr(self.pipeline, name) is not encoder:
                setattr(self.pipeline, name, encoder)
        extra = {"prompt_2": None, "prompt_3": None} if "StableDiffusion3" in type(self.pipeline).__name__ else {}
        with _without(_TOLD_IN_PREPARE, type(self.pipeline).__module__, "transformers.tokenization_utils_base"):
            return self.pipeline.encode_prompt(
                prompt=captions,
                device=self.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=with_null,
                **extra,
            )

    def num_cut(self, captions: list[str]) -> dict[tuple[int, int], list[str]]:
        """To how many tokens captions are cut, how many of these that shortens, and the tokenizers that do so."""
        of_t5 = inspect.signature(self.pipeline.encode_prompt).parameters.get("max_sequence_length")
        found: dict[tuple[int, int], list[str]] = {}
        for name, tokenizer in self.tokenizers.items():
            longest = tokenizer.model_max_length
            if of_t5 is not None and "CLIP" not in type(tokenizer).__name__:
                longest = of_t5.default
            tokens = tokenizer(captions, truncation=False, verbose=False).input_ids if captions else []
            found.setdefault((longest, sum(len(each) > longest for each in tokens)), []).append(name)
        return found

    def _named(self, outputs: tuple[Any, ...], null: bool) -> Condition:
        if self.family.null_alternates:
            chosen = outputs[int(null) :: 2]
        else:
            half = len(outputs) // 2
            chosen = outputs[half:] if null else outputs[:half]
        named = {name: value for name, value in zip(self.family.text, chosen, strict=True) if name}
        return {name: value.float() if value.is_floating_point() else value for name, value in named.items()}

    def _size(self, network: nn.Module, height: int, width: int) -> Condition:
        return self.family.size(getattr(network, "config", {}), height, width)


class SmallCLIP(TextEncoder):
    """A small CLIP text model with random weights (Radford et al., 2021, arXiv:2103.00020), to be trained with the denoiser; and a tokenizer
    that knows ``words`` as one token each, other words by their letters.

    Args:
        words: of the letters a to z, separated by spaces; in lower case, as the tokenizer makes captions.
        width: of the text embeddings; the network's ``cross_attention_dim``.
        num_layers, num_heads: of the transformer.
        max_tokens: of a caption; longer ones are cut.

    Raises:
        ConfigurationError: words of other letters.
    """

    def __init__(
        self, words: str, width: int = 64, num_layers: int = 2, num_heads: int = 4, max_tokens: int = 16
    ) -> None:
        from diffusers import StableDiffusionPipeline
        from transformers import CLIPTextConfig, CLIPTextModel

        tokenizer = word_tokenizer(words, max_tokens)
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


def word_tokenizer(words: str, max_tokens: int) -> Any:
    """A CLIP tokenizer, the same for the same words, that knows each of them as one token and others by their letters and digits.

    (``train_new_from_iterator`` breaks ties by chance: a run that is built again would know its words by other numbers.)
    """
    from transformers import CLIPTokenizer

    characters = string.ascii_lowercase + string.digits
    vocabulary = [_START, _END, *characters, *(character + _WORD_END for character in characters)]
    merges: list[tuple[str, str]] = []
    for word in words.lower().split():
        if not (word.isascii() and word.isalpha()):
            raise ConfigurationError(f"SmallCLIP got the word {word!r}; expected words of the letters a to z.")
        parts = [*word[:-1], word[-1] + _WORD_END]
        for pair in merges:  # as far as those of the words before it lead
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == pair:
                    parts[i : i + 2] = ["".join(pair)]
                i += 1
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            vocabulary.append(parts[0])
    numbers = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=max_tokens)


class TextConditioning(Conditioning):
    """Captions: batches need ``caption``, a list of strings, or ``condition``, what the encoder made of them beforehand.

    Args:
        encoder: of the captions.
        dropout: share of training samples whose caption becomes the null condition (Ho & Salimans, 2022, arXiv:2207.12598).
        prompts: of probes and samples: the i-th has ``prompts[i % len(prompts)]``.
        trained: train the text encoder, too. Its weights are not averaged (``ema_decay`` is the network's).

    Attributes:
        kept: what a frozen encoder made of prompts, and of None, which stands for no caption; each of shape (1, …).

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
        self.encoder = encoder
        if trained:
            encoder.thaw()
            encoder.train_only_what_is_used()
        else:
            encoder.freeze()
        self.dropout, self.prompts = dropout, tuple(prompts)
        self.kept: dict[str | None, Condition] = {}
        self.register_load_state_dict_post_hook(TextConditioning._forget)
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
        return self.encode(batch["caption"])

    def encode(self, captions: Sequence[str] | None) -> Condition:
        """What the encoder makes of captions; of None, the null condition, of shape (1, …). Without gradients and autocast if it is frozen, as
        it would for a cache."""
        if self.trained:
            return self.encoder.null() if captions is None else self.encoder(captions)
        with torch.no_grad(), torch.autocast(self.encoder.device.type, enabled=False):
            return self.encoder.null() if captions is None else self.encoder(captions)

    def for_training(self, batch: dict[str, Any]) -> Condition:
        condition = self.from_batch(batch)
        first = next(iter(condition.values()))
        dropped = torch.rand(len(first), device=first.device, dtype=torch.float32) < self.dropout
        if not dropped.any():
            return condition
        null = self._null()
        return {
            name: torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), null[name].to(value), value)
            for name, value in condition.items()
        }

    def for_samples(self, sample_ids: Tensor) -> Condition:
        which = sample_ids.cpu() % len(self.prompts)
        used, row = which.unique(return_inverse=True)
        prompts = [self.prompts[i] for i in used.tolist()]
        condition = self.encode(prompts) if self.trained else self._asked_once(prompts)
        return {name: value[row.to(value.device)] for name, value in condition.items()}

    def null(self, num_samples: int, device: torch.device) -> Condition:
        return {name: value.to(device).expand(num_samples, *value.shape[1:]) for name, value in self._null().items()}

    def _null(self) -> Condition:
        """Of one sample."""
        return self.encode(None) if self.trained else self._asked_once([None])

    def _asked_once(self, captions: Sequence[str | None]) -> Condition:
        """Of captions, None for no caption, that a frozen encoder is asked for but once."""
        for caption in captions:
            if caption not in self.kept:
                self.kept[caption] = self.encode(None if caption is None else [caption])
        rows, device = [self.kept[caption] for caption in captions], self.encoder.device
        condition = {name: torch.cat([row[name].to(device) for row in rows]) for name in rows[0]}
        return condition | self.encoder.sized(len(rows))

    def _forget(self, *_: Any) -> None:
        """Other weights may have been loaded into the encoder, unless they are where they were."""
        if any(encoder.saved for encoder in self.encoder.encoders.values() if isinstance(encoder, Frozen)):
            self.kept.clear()

    @property
    def description(self) -> dict[str, Any]:
        return {"prompts": list(self.prompts), "encoder": self.encoder.description}

    def prepare(self, network: nn.Module, data: Any) -> None:
        if data.reader.caption_column is None:
            raise ConfigurationError("TextConditioning needs captions; set the data's `caption_column`.")
        self.encoder.made_for(network, *data.image_shape[1:])
        for (longest, cut), tokenizers in self.encoder.num_cut(data.checked_captions).items():
            if cut:
                warnings.warn(
                    f"{cut} of the {len(data.checked_captions)} captions that were checked are cut at {longest} tokens ({', '.join(tokenizers)}): "
                    "what comes after, the text encoder does not see. Put what matters first.",
                    stacklevel=2,
                )


@contextmanager
def _without(messages: Sequence[str], *loggers: str) -> Iterator[None]:
    """Keep what these loggers say in one of these messages to themselves."""

    def another(record: logging.LogRecord) -> bool:
        return not any(message in record.getMessage() for message in messages)

    named = [logging.getLogger(name) for name in loggers]
    for logger in named:
        logger.addFilter(another)
    try:
        yield
    finally:
        for logger in named:
            logger.removeFilter(another)


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


def _check_belonging(name: str, encoder: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that is not this encoder's."""
    tokens, embeddings = len(tokenizer), encoder.get_input_embeddings().num_embeddings
    if not _USED * embeddings <= tokens <= embeddings:
        raise ConfigurationError(
            f"The {_tokenizer_of(name)} has {tokens:,} tokens, the {name} embeds {embeddings:,}; they do not belong together: take both "
            "from one pipeline."
        )
    longest, positions = tokenizer.model_max_length, getattr(encoder.config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise ConfigurationError(
            f"The {_tokenizer_of(name)} makes captions of up to {longest:,} tokens, the {name} takes {positions:,}; write "
            f'`"model_max_length": {positions}` in {_tokenizer_of(name)}/tokenizer_config.json.'
        )


def _encoder_description(encoder: Any) -> dict[str, Any]:
    config = {name: value for name, value in encoder.config.to_dict().items() if name not in _OF_THE_FILE}
    return {"class_name": type(encoder).__name__, "config": config}


def _encoder_from(description: dict[str, Any]) -> Any:
    cls = _transformers_class(description["class_name"])
    return cls(cls.config_class.from_dict(description["config"]))


def _tokenizer_description(tokenizer: Any) -> dict[str, Any]:
    """Class and files, as text, without what the last call left in them."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}
    settings = json.loads(files["tokenizer_config.json"])
    kept = {name: value for name, value in settings.items() if name not in _OF_THE_FILE}
    files["tokenizer_config.json"] = json.dumps(kept, sort_keys=True)
    if "tokenizer.json" in files:
        files["tokenizer.json"] = json.dumps(
            json.loads(files["tokenizer.json"]) | {"truncation": None, "padding": None}
        )
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
