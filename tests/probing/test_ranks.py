"""Under sharding each pass through the network is a collective: every rank makes as many, and no number depends on
it."""

import copy

import pytest
import torch
from torch import nn

from ldmprobe import (
    DiffusionModel,
    HeldOut,
    InheritedError,
    LoRA,
    Sampling,
    probe_denoising,
    probe_lora_strength,
    probe_sampling,
)
from ldmprobe.diffusion.samplers import DDIM, DPMSolver, PredictorCorrector
from ldmprobe.probing.analyses import StepKL
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.sampling_probe import default_analyses
from tests.helpers import gaussian_model
from tests.probing.gaussian import assert_same_record, draw, exact_reference, on_ranks

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}  # float64, summed in another order


def probes(ranks=None, batch_size=3):
    """Both probes with every analysis, and how many passes they made through the network, of how many latents each."""
    model, passes = gaussian_model(), []
    model.network.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    reference, held_out = exact_reference(model), HeldOut(draw(model, 37), {})
    analyses = [*default_analyses(reference, held_out), InheritedError(num_levels=2, num_latents=33)]
    records = (
        probe_sampling(
            model, reference, Sampling(10, 3, batch_size=batch_size), analyses=analyses, held_out=held_out, ranks=ranks
        ),
        probe_denoising(model, held_out, reference, num_draws=33, batch_size=batch_size, ranks=ranks, image_loss=True),
    )
    return records, passes


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 3), (2, 5), (4, 1), (4, 256), (11, 2)])
def test_every_rank_makes_as_many_passes_of_as_many_latents(world_size, batch_size):
    expected, _ = probes()
    results = on_ranks(world_size, lambda ranks: probes(ranks, batch_size))
    passes = [passes for _, passes in results]
    assert passes == [passes[0]] * world_size
    for records, _ in results:
        for found, record in zip(records, expected, strict=True):
            assert_same_record(found, record, **TOLERANCE)


@pytest.mark.parametrize("sampler", [DPMSolver(sde=True), PredictorCorrector(predictor=DDIM(eta=1.0))])
def test_a_stochastic_sampler_makes_the_same_record_on_two_ranks(sampler):
    model = gaussian_model()
    reference = exact_reference(model)

    def probe(ranks=None, batch_size=64):
        return probe_sampling(
            model, reference, Sampling(10, 4, sampler, batch_size=batch_size), [StepKL()], ranks=ranks
        )

    expected = probe()
    for record in on_ranks(2, lambda ranks: probe(ranks, batch_size=3)):
        assert_same_record(record, expected, **TOLERANCE)


class Pixels(nn.Module):
    """A linear denoiser with a LoRA."""

    def __init__(self, num_pixels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_pixels, num_pixels, bias=False)
        LoRA(rank=2, targets=["linear"]).add_to(self)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=num_pixels**-0.5)
        self.double()

    def forward(self, z_t, t, condition):
        return self.linear(z_t.flatten(1)).view_as(z_t)


def test_a_lora_is_tried_by_two_ranks_in_half_the_passes():
    gaussian = gaussian_model()
    shape = gaussian.latent_shape
    torch.manual_seed(0)
    model = DiffusionModel(Pixels(torch.Size(shape).numel()), gaussian.schedule, shape)
    kinds = HeldOut(draw(gaussian, 7), {}), HeldOut(draw(gaussian, 20)[7:], {})

    def probe(ranks=None):
        own, latents = copy.deepcopy(model), []
        own.network.register_forward_hook(lambda module, inputs, output: latents.append(len(inputs[0])))
        return probe_lora_strength(own, *kinds, num_draws=33, ranks=ranks), sum(latents)

    expected, alone = probe()
    for record, latents in on_ranks(2, probe):
        assert_same_record(record, expected, **TOLERANCE)
        assert latents * 33 == alone * 17


@pytest.mark.parametrize(("num_samples", "world_size"), [(10, 1), (10, 2), (11, 4), (2, 3), (2, 5)])
def test_an_even_share_is_the_share_made_up_to_one_length(num_samples, world_size):
    ranks = [Ranks(rank, world_size) for rank in range(world_size)]
    shares = [one.even_share(num_samples) for one in ranks]
    assert {len(share) for share in shares} == {-(-num_samples // world_size)}
    for one, share in zip(ranks, shares, strict=True):
        mine = one.share(num_samples)
        assert torch.equal(share[: len(mine)], mine)
        assert not share[len(mine) :].any()


def test_rows_of_samples_that_are_thrown_away_are_not_gathered():
    ranks = Ranks(1, 2)
    rows = torch.tensor([[1.0], [3.0], [99.0]])
    assert ranks.gather_rows(rows, ranks.share(5), 5).flatten().tolist() == [0, 1, 0, 3, 0]
