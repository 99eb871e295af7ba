"""Low-rank updates: their formula, what they train, and what is said of those that cannot be."""

import sys

import pytest
import torch
from torch import nn

from ldmprobe.pretrained.lora import LoRA, LoRAWeights, merge_lora
from ldmprobe.training.ema import EMA
from tests.helpers import FLOAT64, refused, tiny_unet_with_attention
from tests.pipelines import conditional_unet


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def _stirred(network):
    """Updates start with B = 0."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return network


def test_a_layer_is_its_own_plus_alpha_over_rank_times_the_product():
    torch.manual_seed(0)
    network = TwoLayers().double()
    first, bias = network.first.weight.detach().clone(), network.first.bias.detach().clone()
    x = torch.randn(3, 6, dtype=torch.float64)
    before = network(x)
    LoRA(rank=2, alpha=3.0, targets=["first"]).add_to(network)
    network.double()
    torch.testing.assert_close(network(x), before, **FLOAT64)
    _stirred(network)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    (a, b) = (trained[f"first.lora_{part}.default.weight"] for part in "AB")
    assert len(trained) == 2
    expected = network.second((x @ (first + 3 / 2 * b @ a).T + bias).tanh())
    torch.testing.assert_close(network(x), expected, **FLOAT64)
    merge_lora(network)
    torch.testing.assert_close(network(x), expected, **FLOAT64)
    assert type(network.first) is nn.Linear
    assert set(network.state_dict()) == set(TwoLayers().state_dict())


def test_the_average_shares_the_base_and_averages_the_updates():
    network = conditional_unet()
    LoRA(rank=2).add_to(network)
    ema = EMA(network, decay=0.5, warmup=False)
    _stirred(network)
    ema.update(network)
    for name, live in network.named_parameters():
        average = ema.network.get_parameter(name)
        assert (average is live) == ("lora_" not in name)
        if "lora_B" in name:
            torch.testing.assert_close(average, live.detach() / 2)


def test_convolutions_can_be_targets_too():
    network = tiny_unet_with_attention()
    LoRA(rank=2, targets=["conv1", "to_q"]).add_to(network)
    trained = {name.split(".lora_")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name.rsplit(".", 1)[-1] for name in trained} == {"conv1", "to_q"}


def test_merging_does_nothing_where_there_is_no_lora():
    network = tiny_unet_with_attention()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    merge_lora(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("target", ["to_kk", "norm1", "q"])
def test_a_target_that_matches_nothing_is_refused_with_those_that_would(target):
    with refused(rf"target '{target}' is no linear layer or convolution of UNet2DModel; .*conv1.*to_out\.0"):
        LoRA(targets=["to_q", target]).add_to(tiny_unet_with_attention())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "got rank 0, alpha None, dropout 0.0; expected rank >= 1"),
        ({"alpha": -1.0}, "alpha > 0"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\)"),
        ({"targets": []}, "expected a list of one or more names"),
        ({"targets": "to_q"}, "expected a list of one or more names"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with refused(message):
        LoRA(**settings)


def test_a_rank_above_that_of_all_matrices_is_refused():
    with refused("LoRA got rank 6; none of the matrices of TwoLayers that it updates has a rank above 5"):
        LoRA(rank=6, targets=["first", "second"]).add_to(TwoLayers())
    LoRA(rank=5, targets=["first", "second"]).add_to(TwoLayers())


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with refused(r"pip install 'ldmprobe\[lora\]'"):
        LoRA().add_to(tiny_unet_with_attention())


@pytest.mark.parametrize(
    ("pipeline_class", "component", "whose"),
    [
        (None, "unet", "the unet of a model without text"),
        ("PixArtSigmaPipeline", "transformer", "the transformer of PixArtSigmaPipeline"),
        ("StableDiffusion3Pipeline", "text_encoder_3", "the text_encoder_3 of StableDiffusion3Pipeline"),
    ],
)
def test_where_diffusers_has_no_format_for_lora_it_is_refused_by_name(tmp_path, pipeline_class, component, whose):
    weights = LoRAWeights(pipeline_class, {component: {"to_q.lora_A.weight": torch.zeros(1, 1)}}, {component: {}})
    with refused(f"no LoRA format for {whose}; export it with `--merge`"):
        weights.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
