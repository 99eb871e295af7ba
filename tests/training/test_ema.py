"""The moving average against its closed form."""

import copy

import pytest
import torch
from torch import nn

from ldmprobe import DiffusionModel, LoRA
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.pretrained.lora import merge_lora
from ldmprobe.training.ema import EMA
from tests.helpers import FLOAT64, refused, sd_scheduler, tiny_unet


def _scalar(value: float) -> nn.Module:
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, value)
    return module


@pytest.mark.parametrize("warmup", [True, False])
def test_average_of_a_known_sequence_is_its_weighted_sum(warmup):
    live = _scalar(2.0)
    ema = EMA(live, decay=0.9, warmup=warmup)
    values = [2.0, 5.0, -1.0, 0.5, 3.0] * 30
    for value in values[1:]:
        nn.init.constant_(live.weight, value)
        ema.update(live)
    decays = [min(0.9, (1 + n) / (10 + n)) if warmup else 0.9 for n in range(1, len(values))]
    expected = values[0]
    for decay, value in zip(decays, values[1:], strict=True):
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(ema.network.weight, torch.full_like(live.weight, expected), **FLOAT64)


def test_constant_parameters_forget_their_start_by_the_product_of_decays():
    live = _scalar(0.0)
    ema = EMA(live, decay=0.999)
    nn.init.constant_(live.weight, 1.0)
    for _ in range(200):
        ema.update(live)
    # prod (1+n)/(10+n) for n = 1 … 200 telescopes to 10!/1! · 201!/210! = prod_{k=2}^{10} k/(200+k)
    left = torch.tensor([k / (200 + k) for k in range(2, 11)], dtype=torch.float64).prod()
    torch.testing.assert_close(1 - ema.network.weight.squeeze(), left, rtol=1e-6, atol=1e-15)


def test_decay_is_limited_by_the_number_of_updates():
    ema = EMA(_scalar(0.0), decay=0.9999)
    assert ema.decay_at(0) == pytest.approx(0.1)
    assert ema.decay_at(90) == pytest.approx(0.91)
    assert ema.decay_at(10**6) == 0.9999


def test_frozen_parameters_are_shared_and_buffers_copied():
    live = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    live[0].weight.requires_grad_(False)
    ema = EMA(live, decay=0.5)
    assert ema.network[0].weight is live[0].weight
    live.train()
    live(torch.randn(8, 2))
    ema.update(live)
    assert int(ema.network[1].num_batches_tracked) == 1
    assert not any(parameter.requires_grad for name, parameter in ema.network.named_parameters() if name != "0.weight")


def test_the_average_is_never_in_training_mode():
    network = nn.Sequential(tiny_unet(dropout=0.5))
    ema = EMA(network)
    nn.Module.train(nn.ModuleList([network, ema]), True)
    assert not any(module.training for module in ema.modules())


def test_state_goes_through_a_state_dict():
    live = _scalar(1.0)
    ema = EMA(live, decay=0.9)
    nn.init.constant_(live.weight, 3.0)
    ema.update(live)
    other = EMA(_scalar(0.0), decay=0.9)
    other.load_state_dict(copy.deepcopy(ema.state_dict()))
    assert int(other.num_updates) == 1
    assert torch.equal(other.network.weight, ema.network.weight)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_an_average_of_half_precision_weights_moves_as_it_would_in_double(precision):
    """θ walks from 1 to 2 in 300 steps that half precision has; at decay .999 a step is often less than half of its
    last digit."""
    walk = torch.linspace(1.0, 2.0, 301).to(precision)
    live = _scalar(1.0).to(precision)
    ema = EMA(live, decay=0.999, warmup=False)
    expected = 1.0
    for value in walk[1:].tolist():
        nn.init.constant_(live.weight, value)
        ema.update(live)
        expected = 0.999 * expected + 0.001 * value
    assert expected - 1 > 0.1
    assert float(ema.network.weight) == pytest.approx(expected, rel=1e-5)


def test_a_module_that_is_cast_keeps_its_average_in_float32_and_can_use_it():
    live = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    live[0].requires_grad_(False)
    both = nn.ModuleList([live, EMA(live)]).bfloat16()
    average = both[1].network
    assert {tensor.dtype for tensor in live.state_dict().values()} == {torch.bfloat16, torch.int64}
    assert {tensor.dtype for tensor in average.state_dict().values()} == {torch.float32, torch.int64}
    assert average(torch.ones(2, 3)).dtype == torch.float32
    assert {tensor.dtype for tensor in both.double()[1].network.parameters()} == {torch.float64}


def test_a_lora_is_averaged_in_float32_beside_a_base_that_is_shared_in_half_precision():
    network = tiny_unet(1, down_block_types=["AttnDownBlock2D"], attention_head_dim=4)
    LoRA(rank=2).add_to(network)
    both = nn.ModuleList([network, EMA(network, decay=0.5, warmup=False)]).bfloat16()
    live, average = (dict(each.named_parameters()) for each in (network, both[1].network))
    for name, parameter in live.items():
        assert parameter.dtype == torch.bfloat16
        assert (average[name].dtype == torch.float32) if "lora" in name else (average[name] is parameter)
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.add_(1.0) if "lora" in name else None
    both[1].update(network)
    model = DiffusionModel(both[1].network, as_schedule(sd_scheduler()), (1, 8, 8))
    assert model.predict(torch.ones(1, 1, 8, 8), torch.tensor([5]), {}).isfinite().all()
    merge_lora(both[1].network)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_out_of_range_is_refused(decay):
    with refused(r"expected a number in \[0, 1\)"):
        EMA(_scalar(0.0), decay=decay)
