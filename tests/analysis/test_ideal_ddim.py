"""The ideal process of DDIM in closed form, and the least error of a denoiser (MEASUREMENT.md, section 1)."""

import numpy as np
import pytest
import torch
from scipy import integrate
from torch.distributions import Normal, kl_divergence

from ldmprobe.analysis.ideal import IdealPath, ideal_path
from ldmprobe.analysis.spectrum import gaussian_mmse
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.samplers import DDIM
from ldmprobe.diffusion.schedule import SamplingGrid
from tests.helpers import FLOAT64, gaussian_model, sd_scheduler


def ideal_of(mean: torch.Tensor, variance: torch.Tensor, grid: SamplingGrid) -> IdealPath:
    return ideal_path(mean, variance, DDIM().program(grid), grid)


def test_step_kl_equals_equation_2_of_the_slope():
    model = gaussian_model()
    mean, lam = model.network.mean.detach().flatten(), model.network.variance.detach().flatten()
    grid = model.schedule.native_grid(50)
    ideal = ideal_of(mean, lam, grid)
    a_t, b_t, a_s, b_s = ((level**2)[:, None] for level in (grid.alpha_t, grid.sigma_t, grid.alpha_s, grid.sigma_s))
    m = ((a_s * a_t).sqrt() * lam + (b_s * b_t).sqrt()) / (a_t * lam + b_t)
    expected = 0.5 * (m**-2 - 1 + 2 * m.log() + (ideal.mean_t - ideal.mean_s) ** 2 / ideal.var_s)
    torch.testing.assert_close(ideal.step_kl(), expected, rtol=1e-8, atol=1e-12)


def test_identity_4_even_a_perfect_model_underdisperses():
    lam = torch.logspace(-3, 1, 9, dtype=torch.float64)
    grid = as_schedule(sd_scheduler()).native_grid(50)
    ideal = ideal_of(torch.zeros_like(lam), lam, grid)
    m2 = ideal.var_s / ideal.var_t
    angle = (torch.arccos(grid.alpha_t) - torch.arccos(grid.alpha_s))[:, None]
    expected = 1 - lam * angle.sin() ** 2 / (ideal.forward_var_t * ideal.forward_var_s)
    found = m2 * ideal.forward_var_t / ideal.forward_var_s
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
    assert (found <= 1).all()


def test_forward_moments_are_those_of_noised_gaussian_data():
    mean, lam = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.1])
    grid = as_schedule(sd_scheduler()).native_grid(10)
    ideal = ideal_of(mean, lam, grid)
    torch.testing.assert_close(ideal.forward_mean_t, grid.alpha_t[:, None] * mean.double(), **FLOAT64)
    torch.testing.assert_close(
        ideal.forward_var_s, grid.alpha_s[:, None] ** 2 * lam.double() + grid.sigma_s[:, None] ** 2, **FLOAT64
    )
    q_t = Normal(ideal.forward_mean_t, ideal.forward_var_t.sqrt())
    q_s = Normal(ideal.forward_mean_s, ideal.forward_var_s.sqrt())
    torch.testing.assert_close(ideal.forward_step_kl(), kl_divergence(q_t, q_s), rtol=1e-8, atol=1e-12)


def test_more_steps_bring_the_path_to_the_data():
    lam = torch.tensor([0.1, 0.3, 1.0, 3.0], dtype=torch.float64)
    schedule = as_schedule(sd_scheduler(set_alpha_to_one=True, timestep_spacing="trailing"))
    errors = [
        (ideal_of(torch.ones_like(lam), lam, schedule.native_grid(steps)).var_s[-1] / lam - 1).abs().max()
        for steps in (10, 50, 250)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.1


@pytest.mark.parametrize("log_snr", [-6.0, 0.0, 5.0])
@pytest.mark.parametrize("variance", [0.05, 1.0, 4.0])
def test_gaussian_mmse_equals_the_posterior_variance_of_the_noise(variance: float, log_snr: float):
    """Integrated numerically: E Var(ε | z) for z = α x + σ ε, all Gaussian."""
    alpha, sigma = (1 / (1 + np.exp(-sign * log_snr)) ** 0.5 for sign in (1, -1))
    v = alpha**2 * variance + sigma**2
    z = 1.3  # the posterior variance does not depend on it

    def density(e: float, power: int) -> float:
        return e**power * np.exp(-(e**2) / 2 - (z - sigma * e) ** 2 / (2 * alpha**2 * variance))

    center, width = sigma * z / v, alpha * (variance / v) ** 0.5
    limits = (center - 10 * width, center + 10 * width)
    m0, m1, m2 = (integrate.quad(density, *limits, args=(power,))[0] for power in (0, 1, 2))
    found = gaussian_mmse(torch.tensor([variance], dtype=torch.float64), torch.tensor(log_snr, dtype=torch.float64))
    assert float(found) == pytest.approx(m2 / m0 - (m1 / m0) ** 2, rel=1e-6)


def test_gaussian_mmse_averages_over_directions_and_keeps_the_shape_of_the_levels():
    variance, log_snr = torch.tensor([0.1, 1.0, 3.0]), torch.linspace(-5, 5, 6).view(2, 3)
    snr = log_snr.double().exp()[..., None] * variance.double()
    torch.testing.assert_close(gaussian_mmse(variance, log_snr), (snr / (snr + 1)).mean(-1), **FLOAT64)
    assert float(gaussian_mmse(torch.tensor([0.0, -1e-12]), torch.tensor(3.0))) == 0  # pure noise is fully known
