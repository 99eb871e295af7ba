"""SmallCLIP: a text encoder of one's own, trained with the denoiser."""

from __future__ import annotations

import string

from ldmprobe.errors import ConfigurationError, needing
from ldmprobe.models.conditioning.text_encoder import TextEncoder, text_pipeline
from ldmprobe.types import Component

_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"  # CLIP's


class SmallCLIP(TextEncoder):
    """A small CLIP text model with random weights (Radford et al., 2021, arXiv:2103.00020), to be trained with the
    denoiser; and a tokenizer that knows `words` as one token each, other words by their letters, a to z, and digits.

    Args:
        words: words of the letters a to z, separated by spaces; in lower case, as the tokenizer makes captions.
        width: width of the text embeddings, the network's `cross_attention_dim`.
        num_layers, num_heads: size of the transformer.
        max_tokens: the longest caption; longer ones are cut.

    Raises:
        ConfigurationError: words of other letters.
    """

    def __init__(
        self, words: str, width: int = 64, num_layers: int = 2, num_heads: int = 4, max_tokens: int = 16
    ) -> None:
        with needing("transformers", "SmallCLIP"):
            from transformers import CLIPTextConfig, CLIPTextModel
        from diffusers import StableDiffusionPipeline

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
        super().__init__(text_pipeline(StableDiffusionPipeline, parts))


def word_tokenizer(words: str, max_tokens: int) -> Component:
    """Return a CLIP tokenizer, the same for the same words, that knows each of them as one token and others by their
    letters and digits.

    (`train_new_from_iterator` breaks ties by chance: a run that is built again would know its words by other numbers.)
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
