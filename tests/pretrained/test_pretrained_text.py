"""Text encoders of a pipeline, for its own network or another."""

import pytest
import torch

from ldmprobe.models.conditioning import TextConditioning
from ldmprobe.models.families import FAMILIES
from ldmprobe.models.model_folder import ModelFolder
from ldmprobe.pretrained.load import PretrainedText, load_pipeline
from ldmprobe.pretrained.source import Source
from tests.helpers import refused
from tests.pipelines import saved


def test_frozen_text_encoders_are_read_from_yaml(tmp_path):
    import yaml
    from jsonargparse import ArgumentParser

    where = str(saved("PixArtAlphaPipeline"))
    config = {"encoder": {"class_path": "ldmprobe.PretrainedText", "init_args": {"pipeline": where}}}
    parser = ArgumentParser()
    parser.add_class_arguments(TextConditioning, "text")
    text = yaml.safe_dump({"text": config | {"prompts": ["a red cat"]}})
    conditioning = parser.instantiate_classes(parser.parse_string(text)).text
    whole = load_pipeline(where, prompts=["a red cat"])
    ids = torch.arange(2)
    torch.testing.assert_close(conditioning.for_samples(ids), whole.conditioning.for_samples(ids))
    assert list(conditioning.parameters()) == []  # frozen, and no network or autoencoder besides
    assert {name.split(".")[1] for name in conditioning.state_dict()} == {"encoders"}


def test_text_encoders_and_autoencoder_are_read_when_they_are_needed(monkeypatch):
    read: list[str] = []
    load = ModelFolder.load
    monkeypatch.setattr(ModelFolder, "load", lambda self, *dtype: read.append(self.folder.name) or load(self, *dtype))
    model = load_pipeline(str(saved("StableDiffusionXLPipeline")))
    model.codec.latent_shape((3, 16, 16))
    assert model.conditioning.encoder.description["encoders"]
    assert read == ["unet"]
    model.conditioning.for_samples(torch.arange(2))
    assert read == ["unet", "text_encoder", "text_encoder_2"]
    model.codec.decode(torch.zeros(1, *model.latent_shape))
    model.conditioning.for_samples(torch.arange(2))
    assert read == ["unet", "text_encoder", "text_encoder_2", "vae"]


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.text and not family.text_of])
def test_text_encoders_in_half_precision_say_nearly_the_same_in_float32(family):
    whole = load_pipeline(str(saved(family)), ["a red cat"]).conditioning
    half = load_pipeline(Source(str(saved(family)), text_precision="bfloat16"), ["a red cat"]).conditioning
    ids = torch.arange(1)
    expected, condition = whole.for_samples(ids), half.for_samples(ids)
    networks = [encoder.network for encoder in half.encoder.encoders.values()]
    assert {parameter.dtype for network in networks for parameter in network.parameters()} == {torch.bfloat16}
    assert (whole.encoder.precision, half.encoder.precision) == ("float32", "bfloat16")
    for name, value in condition.items():
        assert value.dtype == expected[name].dtype
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0.05)
    assert not torch.equal(condition["encoder_hidden_states"], expected["encoder_hidden_states"])


def test_a_pipeline_without_text_has_no_text_encoder():
    with refused("is a DiTPipeline, which has no text encoder"):
        PretrainedText(str(saved("DiTPipeline")))
