"""DiffusionModel: prediction with guidance, and how a LightningModule offers one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.conditioning import ClassConditioning, Unconditional
from ldmprobe.models.denoiser import as_denoiser
from ldmprobe.models.diffusion_model import DiffusionModel, diffusion_model_of
from tests.helpers import FLOAT32, sd_scheduler, tiny_unet

Z, T = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 300, 600, 999])
LABELS = {"class_labels": torch.tensor([0, 1, 2, 0])}
NULL = {"class_labels": torch.tensor([3, 3, 3, 3])}


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    torch.manual_seed(0)
    network = tiny_unet(num_class_embeds=4).eval()
    nn.init.normal_(network.class_embedding.weight, std=3.0)
    return DiffusionModel(network, NoiseSchedule(sd_scheduler()), (2, 8, 8), conditioning=ClassConditioning(3))


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_guidance_goes_from_the_null_prediction_through_the_conditional_one(model, scale):
    denoise = as_denoiser(model.network)
    conditional, null = denoise(Z, T, LABELS), denoise(Z, T, NULL)
    assert not torch.allclose(conditional, null, atol=1e-3)
    guided = model.predict(Z, T, LABELS, scale)
    torch.testing.assert_close(guided, null + scale * (conditional - null), **FLOAT32)


@torch.no_grad()
def test_scale_1_is_the_conditional_prediction_in_one_pass(model):
    calls = []
    handle = model.network.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(model.predict(Z, T, LABELS), as_denoiser(model.network)(Z, T, LABELS))
    assert len(calls) == 2  # one for each side of the comparison
    handle.remove()


@torch.no_grad()
def test_guidance_of_an_unconditional_model_changes_nothing():
    network = tiny_unet().eval()
    model = DiffusionModel(network, NoiseSchedule(sd_scheduler()), (2, 8, 8))
    assert torch.equal(model.predict(Z, T, {}, 5.0), model.predict(Z, T, {}))


@torch.no_grad()
def test_a_half_precision_network_samples_in_float32(model):
    network = tiny_unet().eval().to(torch.bfloat16)
    half = DiffusionModel(network, NoiseSchedule(sd_scheduler()), (2, 8, 8))
    assert half.predict(Z, T, {}).dtype == torch.float32


def test_what_is_not_given_is_identity_and_unconditional(model):
    plain = DiffusionModel(model.network, model.schedule, (2, 8, 8))
    assert torch.equal(plain.codec.encode(Z), Z)
    assert isinstance(plain.conditioning, Unconditional)
    assert (plain.weights, plain.device) == ("raw", torch.device("cpu"))
    assert plain.modules == [plain.network, plain.codec, plain.conditioning]


def test_a_module_offers_its_model_by_a_method(model):
    class Module(nn.Module):
        def diffusion_model(self):
            return model

    assert diffusion_model_of(Module()) is model


def test_a_module_without_the_method_is_refused_with_what_to_write():
    with pytest.raises(ConfigurationError, match=r"Linear cannot be probed: give it a method `diffusion_model\(self\)"):
        diffusion_model_of(nn.Linear(1, 1))
