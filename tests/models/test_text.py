"""Text as a condition: the tokenizer, the encoders, and what training and probes are told."""

import logging
import math
import sys
import warnings
from collections.abc import Sequence
from types import SimpleNamespace

import diffusers.utils
import pytest
import torch

from ldmprobe import LatentCodec, SmallCLIP, TextConditioning, TextEncoder
from ldmprobe.models.conditioning.small_clip import word_tokenizer
from ldmprobe.models.families import FAMILIES
from tests.helpers import refused
from tests.pipelines import ALONE, conditional_unet, tiny, wide_pixart

WORDS = "a small large red green blue circle square ring star on the left right greener starring"
WITH_TEXT = [name for name in ALONE if FAMILIES[name.split(",")[0]].text]
CPU = torch.device("cpu")
_OTHER_PROMPTS = {"StableDiffusion3Pipeline": {"prompt_2": None, "prompt_3": None}}


def data(
    captions: str | None = "caption", size: tuple[int, int] = (16, 16), checked: Sequence[str] = ()
) -> SimpleNamespace:
    """What of a data module a text conditioning looks at."""
    names = ("image", *([] if captions is None else ["caption"]))
    return SimpleNamespace(batch_names=names, image_shape=(3, *size), checked_captions=list(checked))


def small(width: int = 16) -> SmallCLIP:
    torch.manual_seed(0)
    return SmallCLIP(WORDS, width=width, num_layers=1, num_heads=2, max_tokens=12)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- the small one ----------------------------------------------------------------------------------------------------


def test_each_word_is_one_token_and_others_are_spelt():
    tokenizer = word_tokenizer(WORDS, max_tokens=12)
    assert [len(tokenizer.tokenize(word)) for word in WORDS.split()] == [1] * len(WORDS.split())
    assert len({tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in WORDS.split()}) == len(WORDS.split())
    assert tokenizer.tokenize("A Red zeb 7") == ["a</w>", "red</w>", "z", "e", "b</w>", "7</w>"]
    assert word_tokenizer(WORDS, 12).get_vocab() == tokenizer.get_vocab()  # the same numbers in every run


def test_a_small_clip_is_transformers_clip():
    encoder = small()
    tokens = encoder.tokenizers["tokenizer"](["a red star"], padding="max_length", max_length=12, return_tensors="pt")
    expected = encoder.encoders["text_encoder"](tokens.input_ids)[0]
    torch.testing.assert_close(encoder(["a red star"])["encoder_hidden_states"], expected)


def test_words_of_other_letters_are_refused():
    with refused("SmallCLIP got the word 'bleu-clair'; expected words of the letters a to z"):
        SmallCLIP("rouge bleu-clair")


# --- any of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "without"),
    [*((name, ()) for name in WITH_TEXT), ("StableDiffusion3Pipeline", ("text_encoder_3", "tokenizer_3"))],
)
def test_an_encoder_is_rebuilt_from_its_description(name, without):
    pipeline = tiny(name)
    pipeline.register_modules(**dict.fromkeys(without))
    encoder = TextEncoder(pipeline).eval()
    network = getattr(pipeline, encoder.family.network)
    encoder(["a red cat"])  # tokenizers keep what the last call asked of them
    twin = TextEncoder.from_description(encoder.description, network).eval()
    twin.load_state_dict(encoder.state_dict())
    twin.set_image_size(network, 16, 16)
    assert twin.description == encoder.description
    with torch.no_grad():
        assert same(twin(["a red cat", ""]), encoder(["a red cat", ""]))
        assert same(twin.null(), encoder.null())


def test_settings_that_the_encoding_goes_by_are_kept():
    pipeline = tiny("StableDiffusionXLPipeline")
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    encoder = TextEncoder(pipeline)
    assert TextEncoder.from_description(encoder.description, pipeline.unet).null()["text_embeds"].any()
    assert not TextEncoder(tiny("StableDiffusionXLPipeline")).null()["text_embeds"].any()


def test_a_tokenizer_of_another_encoder_is_refused():
    pipeline = tiny("StableDiffusionPipeline")
    tokens = len(pipeline.tokenizer)
    for embeddings in (tokens - 1, 2 * tokens):
        pipeline.text_encoder.resize_token_embeddings(embeddings)
        with refused(rf"The tokenizer has \d+ tokens, the text_encoder embeds {embeddings}; they do not"):
            TextEncoder(pipeline)
    pipeline.text_encoder.resize_token_embeddings(tokens + 2)  # as T5's are rounded up
    TextEncoder(pipeline)


def test_captions_longer_than_the_encoder_takes_are_refused():
    pipeline = tiny("StableDiffusionPipeline")
    pipeline.tokenizer.model_max_length = 77
    expected = 'of up to 77 tokens, the text_encoder takes 12; write `"model_max_length": 12` in tokenizer/tokenizer_config.json'
    with refused(expected):
        TextEncoder(pipeline)


# --- what training is told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_captions_become_the_null_condition_as_often_as_asked(dropout):
    torch.manual_seed(0)
    conditioning, n = TextConditioning(small(), dropout), 2_000
    told = conditioning.for_training({"caption": ["a red star"] * n})["encoder_hidden_states"]
    dropped = (told == conditioning.null(1, CPU)["encoder_hidden_states"]).flatten(1).all(1)
    kept = (told == conditioning.encode(["a red star"])["encoder_hidden_states"]).flatten(1).all(1)
    assert torch.equal(kept, ~dropped)
    assert abs(dropped.double().mean() - dropout) <= 4 * math.sqrt(dropout * (1 - dropout) / n)  # standard error


def test_what_was_encoded_before_is_taken_as_it_is():
    conditioning = TextConditioning(small(), dropout=0.0)
    condition = {"encoder_hidden_states": torch.randn(2, 12, 16)}
    assert same(conditioning.for_training({"condition": condition, "caption": ["a", "a"]}), condition)


def test_a_frozen_encoder_has_no_gradients_and_knows_no_autocast_nor_training_mode():
    conditioning = TextConditioning(small()).train()
    assert not any(module.training for module in conditioning.modules())
    whole = conditioning.from_batch({"caption": ["a red star"]})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(conditioning.from_batch({"caption": ["a red star"]}), whole)
        assert conditioning.null(1, CPU)["encoder_hidden_states"].dtype == torch.float32
    assert not whole["encoder_hidden_states"].requires_grad


def test_a_trained_encoder_has_gradients_of_captions_and_of_none():
    conditioning = TextConditioning(small(), dropout=0.5, trained=True).train()
    assert conditioning.encoder.training
    torch.manual_seed(0)
    conditioning.for_training({"caption": ["a red star"] * 8})["encoder_hidden_states"].sum().backward()
    assert all(parameter.grad is not None for parameter in conditioning.encoder.encoders["text_encoder"].parameters())


def test_a_frozen_encoders_null_is_encoded_once_and_again_for_other_weights():
    conditioning, calls = TextConditioning(small()), []
    conditioning.encoder.encoders["text_encoder"].register_forward_hook(lambda *_: calls.append(1))
    first = conditioning.null(2, CPU)["encoder_hidden_states"]
    encoded = len(calls)
    assert torch.equal(conditioning.null(2, CPU)["encoder_hidden_states"], first)
    assert len(calls) == encoded
    conditioning.load_state_dict({name: value + 0.1 for name, value in conditioning.state_dict().items()})
    assert not torch.allclose(conditioning.null(2, CPU)["encoder_hidden_states"], first)


def test_captions_of_letters_that_the_tokenizer_does_not_know_are_refused():
    conditioning, captions = TextConditioning(small(), trained=True), ["красный круг", "синий кубик", "a red star"]
    with refused("2 of the 3 captions .* such as 'красный', 'синий'.*a to z and digits"):
        conditioning.prepare(conditional_unet(), data(checked=captions), LatentCodec())


def test_a_few_words_that_the_tokenizer_does_not_know_are_told_with_their_captions_number():
    captions = ["a star (7)!", "a café 🐶", "Blue"]
    assert small().unknown(captions) == [[], ["café", "🐶"], []]
    with pytest.warns(UserWarning, match="1 of the 3 captions .* such as 'café'"):
        TextConditioning(small()).prepare(conditional_unet(), data(checked=captions), LatentCodec())


def test_what_one_of_several_tokenizers_knows_is_known():
    encoder = TextEncoder(tiny("StableDiffusion3Pipeline"))
    assert encoder.unknown(["a red zebra", "красный"]) == [[], ["красный"]]  # zebras are unknown to T5's alone
    assert TextEncoder(tiny("PixArtAlphaPipeline")).unknown(["a red zebra"]) == [["zebra"]]


@pytest.mark.parametrize("name", WITH_TEXT)
def test_what_a_text_encoder_does_not_see_is_told_once_and_not_for_every_batch(name, caplog):
    pipeline = tiny(name)
    conditioning = TextConditioning(TextEncoder(pipeline))
    network = getattr(pipeline, conditioning.encoder.family.network)
    captions = ["a red star", "", *[" ".join(["red"] * 400)] * 3]
    of_t5 = {"PixArtAlpha": 120, "PixArtSigma": 300, "AuraFlow": 256, "StableDiffusion3": 256}
    expected = {of_t5.get(name.split("Pipeline")[0], 0), *([12] if "Stable" in name else [])} - {0}
    with pytest.warns(UserWarning, match="captions that were checked are cut at") as told:
        conditioning.prepare(network, data(checked=captions), LatentCodec())
    messages = {f"3 of the 5 captions that were checked are cut at {longest} tokens " for longest in expected}
    assert sorted(str(each.message).split("(")[0] for each in told) == sorted(messages)
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)  # it does not propagate
    try:
        conditioning.encode(captions)
        assert caplog.messages == []
        options = {"device": CPU, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        pipeline.encode_prompt(captions[-1], **options, **_OTHER_PROMPTS.get(name, {}))
        assert "was truncated because" in caplog.text  # the user's own calls are as ever
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("name", ["PixArtAlphaPipeline", "PixArtSigmaPipeline"])
def test_captions_of_pixart_are_cleaned_as_its_own_call_does_where_that_is_possible(name, monkeypatch):
    pipeline = tiny(name)
    conditioning = TextConditioning(TextEncoder(pipeline))
    caption = "a red cat #12345 https://example.com"
    plain, key = conditioning.encode([caption]), conditioning.encoder_key
    theirs = sys.modules[type(pipeline).__module__]
    for module in (theirs, diffusers.utils):
        monkeypatch.setattr(module, "is_bs4_available", lambda: True)
        monkeypatch.setattr(module, "is_ftfy_available", lambda: True)
    monkeypatch.setattr(theirs, "BeautifulSoup", lambda text, features: SimpleNamespace(text=text), raising=False)
    monkeypatch.setattr(theirs, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)
    cleaned = conditioning.encode([caption])
    torch.testing.assert_close(cleaned, conditioning.encode(["a red cat"]))
    assert not torch.equal(cleaned["encoder_attention_mask"], plain["encoder_attention_mask"])
    assert (key["clean_caption"], conditioning.encoder_key["clean_caption"]) == (False, True)
    assert TextConditioning(small()).encoder_key["clean_caption"] is False


# --- what probes are told ---------------------------------------------------------------------------------------------


def test_a_samples_prompt_is_a_function_of_its_number():
    conditioning = TextConditioning(small(), prompts=["a red star", "a blue ring", ""])
    told = conditioning.for_samples(torch.tensor([0, 1, 2, 3, 4]))["encoder_hidden_states"]
    expected = conditioning.encode(["a red star", "a blue ring", "", "a red star", "a blue ring"])
    torch.testing.assert_close(told, expected["encoder_hidden_states"])
    assert torch.equal(conditioning.for_samples(torch.tensor([4]))["encoder_hidden_states"], told[4:])


def test_xl_is_told_the_size_of_the_datas_images():
    pipeline = tiny("StableDiffusionXLPipeline")
    conditioning = TextConditioning(TextEncoder(pipeline))
    ids = torch.arange(2)
    assert conditioning.for_samples(ids)["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    conditioning.null(1, CPU)
    with warnings.catch_warnings(action="error"):  # captions that are short enough are no matter
        conditioning.prepare(pipeline.unet, data(size=(24, 32), checked=["a red cat"] * 3), LatentCodec())
    assert conditioning.for_samples(ids)["time_ids"].tolist() == [[24, 32, 0, 0, 24, 32]] * 2
    assert conditioning.null(1, CPU)["time_ids"].tolist() == [[24, 32, 0, 0, 24, 32]]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sample_size": 128}, True),
        ({"sample_size": 128, "use_additional_conditions": False}, False),
        ({"sample_size": 8, "use_additional_conditions": True}, True),
        ({"sample_size": 8}, False),
    ],
)
def test_pixart_alpha_is_told_resolution_and_aspect_ratio_where_it_takes_them(settings, told):
    pipeline = tiny("PixArtAlphaPipeline")
    conditioning = TextConditioning(TextEncoder(pipeline))
    conditioning.prepare(wide_pixart(**settings), data(size=(16, 32)), LatentCodec())
    condition = conditioning.for_samples(torch.arange(1))
    assert ("resolution" in condition) == told
    if told:
        assert (condition["resolution"].tolist(), condition["aspect_ratio"].tolist()) == ([[16.0, 32.0]], [[0.5]])


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"dropout": -0.1}, {"prompts": ()}, {"prompts": "a red star"}])
def test_arguments_out_of_range_are_refused(wrong):
    with refused(r"TextConditioning got (dropout|prompts) .*; expected"):
        TextConditioning(small(), **wrong)


def test_missing_captions_are_refused():
    conditioning = TextConditioning(small())
    with refused("reads 'caption', which the data lacks; set the data's `caption_column`"):
        conditioning.prepare(conditional_unet(), data(captions=None), LatentCodec())
    with refused("reads 'caption', which the data lacks; set the data's `caption_column`"):
        conditioning.from_batch({"image": torch.zeros(1, 3, 16, 16)})


def test_a_class_that_transformers_lacks_is_refused_by_name():
    description = small().description
    description["encoders"]["text_encoder"]["class_name"] = "CLIP9Model"
    with refused(r"needs transformers.CLIP9Model, which transformers .* lacks"):
        TextEncoder.from_description(description, conditional_unet())
