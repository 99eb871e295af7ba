"""as_denoiser: diffusers networks and plain modules answer alike."""

import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from ldmprobe.models.denoiser import as_denoiser, check_denoiser, from_network_config, network_config
from tests.helpers import refused, tiny_unet
from tests.pipelines import conditional_unet, dit

CPU = torch.device("cpu")
Z, T = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 500, 999])


def tiny_text_unet() -> UNet2DConditionModel:
    return conditional_unet(cross_attention_dim=12)


class Plain(ModelMixin, ConfigMixin):
    """A network of one's own, of diffusers' kind, without settings."""

    config_name = "config.json"

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 1)

    def forward(self, sample, timestep):
        return Transformer2DModelOutput(self.layer(sample) * timestep[:, None, None, None])


CASES = {
    "UNet2DModel": (tiny_unet, {}),
    "UNet2DModel with classes": (lambda: tiny_unet(num_class_embeds=6), {"class_labels": torch.tensor([0, 3, 5])}),
    "UNet2DConditionModel": (tiny_text_unet, {"encoder_hidden_states": torch.randn(3, 4, 12)}),
    "DiTTransformer2DModel": (lambda: dit(5), {"class_labels": torch.tensor([0, 3, 5])}),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    make, condition = CASES[request.param]
    network = make().eval()
    for parameter in network.parameters():  # DiT starts with zeros, which would hide everything
        nn.init.normal_(parameter, std=0.1)
    return network, condition


@torch.no_grad()
def test_a_diffusers_network_predicts_as_in_diffusers(case):
    network, condition = case
    prediction = as_denoiser(network)(Z, T, condition)
    assert prediction.shape == Z.shape
    assert torch.equal(prediction, network(Z, T, **condition).sample[:, :2])
    assert not torch.equal(prediction, as_denoiser(network)(Z, T.flip(0), condition))


@torch.no_grad()
def test_the_condition_reaches_the_network(case):
    network, condition = case
    if condition:
        other = {name: value.flip(0) for name, value in condition.items()}
        denoise = as_denoiser(network)
        assert not torch.allclose(denoise(Z, T, condition), denoise(Z, T, other), atol=1e-5)


def test_any_module_that_follows_the_protocol_is_taken_unless_it_answers_with_another_shape():
    class Plain(nn.Module):
        channels = 2

        def forward(self, z_t, t, condition):
            return z_t[:, : self.channels] * t.view(-1, 1, 1, 1)

    module = Plain()
    check_denoiser(module, (2, 8, 8), {}, CPU)
    module.channels = 1
    with refused(r"Plain answers latents of shape \(2, 8, 8\) with \(1, 8, 8\)"):
        check_denoiser(module, (2, 8, 8), {}, CPU)


def test_a_fitting_network_passes_the_check_another_does_not_and_both_keep_their_modes(case):
    network, condition = case
    network.train()
    network.conv_in.eval() if hasattr(network, "conv_in") else network.pos_embed.eval()
    before = [module.training for module in network.modules()]
    check_denoiser(network, (2, 8, 8), {name: value[:1] for name, value in condition.items()}, CPU)
    assert [module.training for module in network.modules()] == before
    with refused("cannot take latents"):
        check_denoiser(network, (3, 8, 8), {name: value[:1] for name, value in condition.items()}, CPU)
    assert [module.training for module in network.modules()] == before
    assert True in before
    assert False in before


@pytest.mark.parametrize(
    ("shape", "image_shape", "advice"),
    [
        ((3, 8, 8), (3, 32, 32), "Make its in_channels and out_channels 3 and its number of levels fit 8 pixels."),
        ((2, 7, 7), (3, 28, 28), "Set the data's `image_size` to a multiple of 8, such as 24."),
        ((2, 1, 1), (3, 4, 4), "Set the data's `image_size` to a multiple of 8, such as 8."),
        ((2, 7, 7), None, "Their height and width have to be multiples of 2."),
    ],
)
def test_latents_that_do_not_fit_are_refused_with_what_to_write(shape, image_shape, advice):
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    network = tiny_unet(channels=2, block_out_channels=[8, 16], **blocks)
    with refused(r"UNet2DModel cannot take latents of shape") as error:
        check_denoiser(network, shape, {}, CPU, image_shape)
    assert str(error.value).endswith(advice)


def test_a_transformer_wants_multiples_of_its_patches():
    condition = {"class_labels": torch.tensor([0])}
    with refused(r"with \(2, 8, 8\); .* `image_size` to a multiple of 4, such as 16"):
        check_denoiser(dit(5), (2, 9, 9), condition, CPU, (3, 18, 18))


@pytest.mark.parametrize("name", ["UNet2DModel with classes", "UNet2DConditionModel", "DiTTransformer2DModel"])
def test_a_network_without_its_condition_is_refused(name):
    with refused("cannot take latents"):
        check_denoiser(CASES[name][0](), (2, 8, 8), {}, CPU)


@torch.no_grad()
def test_a_network_is_rebuilt_from_its_configuration(case):
    network, condition = case
    twin = from_network_config(network_config(network)).eval()
    twin.load_state_dict(network.state_dict())
    assert torch.equal(as_denoiser(twin)(Z, T, condition), as_denoiser(network)(Z, T, condition))


@torch.no_grad()
def test_a_network_of_ones_own_is_known_by_the_kind_of_its_configuration():
    bare, settings = Plain(), nn.Conv2d(2, 2, 1)
    settings.config = {"width": 2}
    settings.forward = lambda z_t, t: z_t * t[:, None, None, None]
    for network, answer in (
        (bare, bare(Z, T).sample),
        (torch.compile(bare, backend="eager"), bare(Z, T).sample),
        (settings, settings(Z, T)),
    ):
        assert torch.equal(as_denoiser(network)(Z, T, {}), answer)
    flow = type("AuraFlowTransformer2DModel", (Plain,), {})()
    for each in (flow, torch.compile(flow, backend="eager")):  # is told t/1000
        torch.testing.assert_close(as_denoiser(each)(Z, T, {}), flow(Z, T / 1000).sample)
    assert (network_config(bare), network_config(settings)) == ({"class_name": "Plain"}, None)


def test_a_scheduler_is_rebuilt_from_its_configuration():
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    twin = from_network_config(network_config(scheduler))
    assert isinstance(twin, DDIMScheduler)
    assert torch.equal(twin.alphas_cumprod, scheduler.alphas_cumprod)
    assert twin.config.prediction_type == "v_prediction"


def test_a_configuration_is_plain_values_and_its_own_copy():
    config = network_config(tiny_unet())
    config["block_out_channels"] = None
    assert network_config(tiny_unet())["block_out_channels"] == (8,)
    assert not any(key.startswith("_") for key in config)
    assert network_config(nn.Linear(1, 1)) is None


def test_a_class_that_diffusers_lacks_is_refused_by_name():
    with refused(r"needs a model or scheduler diffusers.UNet9DModel, which diffusers .* lacks"):
        from_network_config({"class_name": "UNet9DModel"})


@pytest.mark.parametrize(
    ("network", "width", "refusal"),
    [
        (tiny_text_unet, 32, "embeddings are 32 wide and UNet2DConditionModel has cross_attention_dim 12; make them"),
        (tiny_unet, 32, "UNet2DModel takes no text; use UNet2DConditionModel"),
        (
            lambda: conditional_unet(cross_attention_dim=12, time_cond_proj_dim=8),  # the guidance scale
            12,
            "time_cond_proj_dim 8",
        ),
    ],
)
def test_text_that_a_network_does_not_take_is_refused(network, width, refusal):
    with refused(refusal):
        check_denoiser(network(), (2, 8, 8), {"encoder_hidden_states": torch.zeros(1, 4, width)}, CPU)


class Bare(nn.Module):
    """A network of one's own that knows no condition."""

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 2 * z


def test_a_network_without_a_condition_is_called_without_one_and_refuses_any():
    z, t = torch.ones(1, 1, 2, 2), torch.zeros(1)
    assert torch.equal(as_denoiser(Bare())(z, t, {}), 2 * z)
    with refused("Bare.forward takes z and t and is to be told class_labels, too; give it a third argument"):
        as_denoiser(Bare())(z, t, {"class_labels": t})
