"""Bits per dimension of Gaussian data, whose entropy is known, for every process that is a table of α and σ."""

import math

import numpy as np
import pytest
import torch

from ldmprobe.analysis.probability_flow import flow_path, levels_of_path
from ldmprobe.callbacks import LikelihoodProbe
from ldmprobe.diffusion.prediction import EpsilonPrediction
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.likelihood import probe_likelihood
from tests.helpers import GaussianDenoiser, gaussian_model, refused, sd_scheduler, tiny_unet
from tests.probing.gaussian import ScaledBand, assert_same_record, draw, exact_reference, on_ranks

SHAPE = (2, 4, 4)


def tables() -> dict[str, NoiseSchedule]:
    t = torch.linspace(1e-3, 1, 1000, dtype=torch.float64)
    signal = (-0.05 * t - 4.975 * t**2).exp()  # exp(−∫β/2) of the VP-SDE
    sigmas = 0.01 * 5000**t
    return {
        "VP": NoiseSchedule(signal, (1 - signal**2).sqrt(), EpsilonPrediction()),
        "sub-VP": NoiseSchedule(signal, 1 - signal**2, EpsilonPrediction()),
        "VE": NoiseSchedule(torch.ones_like(t), sigmas, EpsilonPrediction(), sigmas, prior_std=50.0),
    }


def gaussian(schedule: NoiseSchedule) -> tuple[DiffusionModel, DiffusionModel]:
    """A perfect model of the usual Gaussian data by this process, and the data's own."""
    data = gaussian_model(SHAPE)
    network = GaussianDenoiser(data.network.mean.detach(), data.network.variance.detach(), schedule)
    return DiffusionModel(network, schedule, SHAPE), data


def entropy(model: DiffusionModel) -> float:
    """Bits per dimension of the data with the noise of the finest level."""
    finest = math.exp(-float(model.schedule.log_snr[0]))
    return float((0.5 * (2 * math.pi * math.e * (model.network.variance.detach() + finest)).log2()).mean())


@pytest.mark.parametrize("process", ["VP", "sub-VP", "VE"])
def test_bits_of_a_perfect_model_are_the_entropy_of_the_data_within_half_a_percent(process: str):
    model, data = gaussian(tables()[process])
    # So many latents, and so drawn, that their own average surprise is the entropy.
    latents = draw(data, 512, seed=1)
    scale = (data.network.variance / (latents - data.network.mean).pow(2).mean(0)).sqrt().detach()
    latents = data.network.mean.detach() + scale * (latents - data.network.mean.detach())
    record = probe_likelihood(model, HeldOut(latents, {}), exact_reference(data), batch_size=512)
    bits = record.scalars["likelihood_bits"]
    assert bits == pytest.approx(entropy(model), rel=5e-3)
    assert record.scalars["likelihood_bound_bits"] == pytest.approx(entropy(model), rel=5e-3)
    assert record.scalars["likelihood_gaussian_bits"] == pytest.approx(bits, rel=1e-3)
    divergence, ideal = (record.curves[f"likelihood_divergence{name}"] for name in ("", "_ideal"))
    np.testing.assert_allclose(divergence.value, ideal.value, atol=0.01)


def test_a_worse_network_needs_more_bits_by_flow_and_by_bound():
    model, data = gaussian(tables()["VP"])
    held_out, reference = HeldOut(draw(data, 256, seed=2), {}), exact_reference(data)
    good = probe_likelihood(model, held_out, reference, log_snr_step=1.0, batch_size=256).scalars
    model.network = ScaledBand(model.network, 0, 1000, 1.2)
    bad = probe_likelihood(model, held_out, reference, log_snr_step=1.0, batch_size=256).scalars
    assert bad["likelihood_bits"] > good["likelihood_bits"] + 0.02
    assert bad["likelihood_bound_bits"] > good["likelihood_bound_bits"] + 0.02
    assert bad["likelihood_gaussian_bits"] == good["likelihood_gaussian_bits"]


def test_the_trace_of_a_dense_jacobian_is_right_on_average():
    """A linear flow with a full matrix: dy/du = A y has log-density change tr A, and ends at exp(A Δu) y."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(8, 8, generator=generator, dtype=torch.float64) / 8
    signs = torch.randint(0, 2, (4000, 8), generator=generator).double() * 2 - 1
    y = torch.randn(4000, 8, generator=generator, dtype=torch.float64)
    path = flow_path(lambda y, k: (y @ matrix.T, ((signs @ matrix) * signs).sum(1)), y, levels_of_path(2.0, -4.0, 12))
    torch.testing.assert_close(path.end, y @ torch.linalg.matrix_exp(3.0 * matrix).T, rtol=0, atol=1e-4)
    spread = float(path.lost.std()) / 4000**0.5
    assert abs(float(path.lost.mean()) - 3.0 * float(matrix.trace())) < 3 * spread


def test_two_ranks_and_small_batches_make_the_same_record():
    model, data = gaussian(tables()["VP"])
    held_out, reference = HeldOut(draw(data, 7, seed=3), {}), exact_reference(data)

    def work(ranks):
        return probe_likelihood(model, held_out, reference, log_snr_step=2.0, batch_size=3, ranks=ranks)

    whole = probe_likelihood(model, held_out, reference, log_snr_step=2.0, batch_size=7)
    for record in on_ranks(2, work):
        assert_same_record(record, whole, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_integrated_is_refused():
    model, data = gaussian(tables()["VP"])
    few = HeldOut(draw(data, 1, seed=0), {})
    with refused("log_snr_step 0"):
        probe_likelihood(model, few, exact_reference(data), log_snr_step=0.0)
    with refused("1 held-out latent"):
        probe_likelihood(model, few, exact_reference(data))


def test_a_network_that_looks_its_timesteps_up_is_refused_before_training():
    network = tiny_unet(time_embedding_type="learned", num_train_timesteps=1000)
    model = DiffusionModel(network, sd_scheduler(), (2, 8, 8))
    with refused("takes whole timesteps only"):
        LikelihoodProbe().check(model)
