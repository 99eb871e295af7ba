"""Ideals as denoisers, against closed forms."""

import pytest
import torch
from torch.testing import assert_close

import ldmprobe
from ldmprobe.analysis.basis import Rotation
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from tests.helpers import FLOAT64, gaussian_model, sd_scheduler

SCHEDULES = {
    "epsilon": lambda: as_schedule(sd_scheduler()),
    "v_prediction": lambda: as_schedule(sd_scheduler(prediction_type="v_prediction")),
    "EDM": ldmprobe.EDMProcess,
    "flow": lambda: ldmprobe.NoiseSchedule(
        1 - torch.linspace(0.001, 1, 1000), torch.linspace(0.001, 1, 1000), ldmprobe.VelocityPrediction(),
        model_time=torch.linspace(1, 1000, 1000),
    ),
}  # fmt: skip


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_memorizer_of_two_points_is_a_hyperbolic_tangent_whatever_it_is_told_and_answers(kind):
    """E[x|z] = m + d tanh(α d·(z − αm)/σ²) of the points m ± d."""
    schedule, middle, half = SCHEDULES[kind](), draw(2, 4, 4), 0.3 * draw(2, 4, 4, seed=1)
    model = ldmprobe.DiffusionModel(
        ldmprobe.Memorizer(torch.stack([middle - half, middle + half]), schedule), schedule, (2, 4, 4)
    )
    for timestep in (100, 500, 900):
        alpha, sigma = float(schedule.alpha[timestep]), float(schedule.sigma[timestep])
        z = alpha * middle + sigma * draw(5, 2, 4, 4, seed=2)
        x0, epsilon = model.x0_and_epsilon(z, float(schedule.model_time[timestep]), alpha, sigma, {})
        along = ((z - alpha * middle) * half).flatten(1).sum(1)
        expected = middle + half * torch.tanh(alpha * along / sigma**2).view(-1, 1, 1, 1)
        assert_close(x0, expected, rtol=1e-6, atol=1e-6)
        assert_close(alpha * x0 + sigma * epsilon, z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("told", [300, 300.5])
def test_a_mixture_of_one_is_the_denoiser_of_gaussian_data(told):
    model = gaussian_model()
    mean, variance = (value.detach().flatten()[None] for value in (model.network.mean, model.network.variance))
    for rotation in (Rotation("pca", (2, 4, 4), torch.eye(32, dtype=torch.float64)), Rotation.cosine((2, 4, 4))):
        flat = variance if rotation.kind == "pca" else torch.full_like(variance, 0.5)
        model.network.variance.data = flat.view(2, 4, 4)
        along = rotation(mean.view(1, 2, 4, 4))
        mixture = ldmprobe.MixtureDenoiser(torch.ones(1), along, flat, rotation, model.schedule)
        z, t = draw(6, 2, 4, 4), torch.full((6,), told)
        assert_close(mixture(z, t, {}), model.network(z, t, {}), **FLOAT64)


def test_a_mixture_is_chosen_where_there_is_one_and_is_then_as_good_as_the_truth():
    """Three clusters of known means; and Gaussian data, which have none."""
    schedule, rotation = as_schedule(sd_scheduler()), Rotation("pca", (1, 4, 4), torch.eye(16, dtype=torch.float64))
    deviation, means = torch.linspace(1, 0.1, 16, dtype=torch.float64).sqrt() / 3, 2 * draw(3, 16)

    def latents(n: int, seed: int) -> torch.Tensor:
        return (means[torch.arange(n) % 3] + deviation * draw(n, 16, seed=seed)).view(n, 1, 4, 4)

    assert ldmprobe.MixtureDenoiser.fit(draw(512, 1, 4, 4), rotation, schedule) is None
    assert ldmprobe.MixtureDenoiser.fit(latents(64, 1), rotation, schedule) is None
    found = ldmprobe.MixtureDenoiser.fit(latents(768, 1), rotation, schedule)
    truth = ldmprobe.MixtureDenoiser(
        torch.full((3,), 1 / 3), means, deviation.square().expand(3, -1), rotation, schedule
    )
    z0, noise, t = latents(300, 2), draw(300, 1, 4, 4, seed=3), torch.full((300,), 500)
    z = schedule.add_noise(z0, noise, t)
    errors = [float((denoiser(z, t, {}) - noise).square().mean()) for denoiser in (truth, found)]
    assert errors[0] <= errors[1] < 1.05 * errors[0]
