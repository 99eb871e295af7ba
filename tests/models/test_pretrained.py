"""load_pipeline: a diffusers pipeline folder, taken apart."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.pretrained import SUPPORTED, load_pipeline
from tests.helpers import FLOAT32, sd_scheduler, tiny_unet


@pytest.fixture
def folder(tmp_path):
    DDPMPipeline(tiny_unet(channels=3), DDPMScheduler(prediction_type="v_prediction")).save_pretrained(
        tmp_path / "ddpm"
    )
    return tmp_path / "ddpm"


def test_the_model_is_the_one_that_was_saved(folder):
    model = load_pipeline(str(folder))
    pipeline = DDPMPipeline.from_pretrained(folder)
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([10, 700])
    with torch.no_grad():
        torch.testing.assert_close(model.predict(z, t, {}), pipeline.unet(z, t).sample, **FLOAT32)
    assert model.latent_shape == (3, 8, 8)
    assert model.schedule.prediction_type == "v_prediction"
    torch.testing.assert_close(model.schedule.alpha**2, DDPMScheduler().alphas_cumprod.double())
    assert model.codec.autoencoder is None
    assert not model.network.training


def test_a_rectangular_model_keeps_its_shape(tmp_path):
    DDIMPipeline(tiny_unet(channels=1, size=(4, 8)), sd_scheduler()).save_pretrained(tmp_path)
    assert load_pipeline(str(tmp_path)).latent_shape == (1, 4, 8)


@pytest.mark.parametrize("family", ["FluxPipeline", "StableDiffusionXLPipeline"])
def test_another_family_is_refused_by_name(folder, family):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": family}))
    with pytest.raises(
        ConfigurationError, match=f"is a {family}, which cannot be probed yet; supported are {SUPPORTED[0]}"
    ):
        load_pipeline(str(folder))


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no diffusers pipeline: there is no readable model_index.json"):
        load_pipeline(str(tmp_path))


@pytest.mark.parametrize("name", ["no/such-pipeline", "/no/such/folder/at/all", "runs/digits/nothing"])
def test_a_name_that_is_nowhere_is_refused(name):
    with pytest.raises(ConfigurationError, match=f"'{name}' is no diffusers pipeline"):
        load_pipeline(name)


def test_pickled_weights_are_refused(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ConfigurationError, match=r"DDPMPipeline in .* cannot be loaded"):
        load_pipeline(str(tmp_path))


def test_broken_weights_are_refused(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigurationError, match=r"DDPMPipeline in .* cannot be loaded"):
        load_pipeline(str(folder))
