"""Nats are an integral over log-SNR: held against adaptive quadrature of the exact denoiser's error, on grids as
schedules have them."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from scipy.integrate import quad

from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.analysis.spectrum import gaussian_mmse
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import log_snr_grid

D = 64
VARIANCE = 1 / torch.arange(1, D + 1, dtype=torch.float64) + 0.05
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    f"{name}, {steps} steps": DDIMScheduler(num_train_timesteps=steps, **betas)
    for name, betas in (
        ("Stable Diffusion", STABLE_DIFFUSION),
        ("linear", {}),
        ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
    )
    for steps in (100, 250, 1000)
} | {"flow": FlowMatchEulerDiscreteScheduler()}


def error(log_snr: float) -> float:
    return float(gaussian_mmse(VARIANCE, torch.tensor(log_snr)))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_bound_of_the_exact_denoiser_is_the_integral_over_the_levels_that_were_probed(name: str):
    schedule = as_schedule(SCHEDULERS[name])
    log_snr = schedule.log_snr[log_snr_grid(DiffusionModel(torch.nn.Identity(), schedule, (1, 8, 8)))].numpy()
    found = nats_per_error(log_snr, D) @ [error(level) for level in log_snr]
    assert found == pytest.approx(0.5 * D * quad(error, log_snr[0], log_snr[-1])[0], rel=2e-3)


def test_levels_that_are_not_evenly_spaced_weigh_what_lies_around_them():
    rising = nats_per_error(np.array([-1.0, 0.0, 0.5, 4.5]), 2)
    np.testing.assert_allclose(rising, [0.5, 0.75, 2.25, 2.0])
    np.testing.assert_array_equal(nats_per_error(np.array([4.5, 0.5, 0.0, -1.0]), 2), rising[::-1])
    np.testing.assert_array_equal(nats_per_error(np.array([3.0]), 2), [0.0])
