"""Conversions between ε, x_0, v and flow velocity."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ldmprobe import VESDE, SubVPSDE
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.prediction import KINDS
from tests.helpers import FLOAT32, FLOAT64, sd_scheduler

TIMESTEPS = torch.tensor([0, 1, 100, 500, 900, 999])
SCHEDULES = {
    "stable diffusion": as_schedule(sd_scheduler()),
    "flow": as_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "sub-VP": SubVPSDE(),
    "VE": VESDE(),
}
ANSWERS = [(kind, of) for kind in KINDS for of in SCHEDULES if kind != "v_prediction" or of == "stable diffusion"]
ANSWERS.remove(("epsilon", "flow"))  # at α = 0 ε says nothing about x_0


def noised(of: str = "stable diffusion"):
    schedule = SCHEDULES[of]
    generator = torch.Generator().manual_seed(0)
    x0, epsilon = torch.randn(2, len(TIMESTEPS), 2, 4, 4, generator=generator, dtype=torch.float64)
    alpha, sigma = schedule.levels(TIMESTEPS, x0)
    return schedule, x0, epsilon, alpha, sigma


@pytest.mark.parametrize(("prediction_type", "of"), ANSWERS)
def test_a_target_and_its_errors_convert_to_x0_and_epsilon_that_agree_with_z_t(prediction_type: str, of: str):
    schedule, x0, epsilon, alpha, sigma = noised(of)
    z_t, kind = alpha * x0 + sigma * epsilon, KINDS[prediction_type]
    target = kind.target(x0, epsilon, alpha, sigma)
    found_x0, found_epsilon = kind.x0_and_epsilon(target, z_t, alpha, sigma)
    torch.testing.assert_close(found_x0, x0, **FLOAT64)
    torch.testing.assert_close(found_epsilon, epsilon, **FLOAT64)

    error = torch.randn(z_t.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found_x0, found_epsilon = kind.x0_and_epsilon(target + error, z_t, alpha, sigma)
    torch.testing.assert_close(alpha * found_x0 + sigma * found_epsilon, z_t, **FLOAT64)
    scale = kind.epsilon_error_scale(schedule.log_snr[TIMESTEPS])
    epsilon_error = (found_epsilon - epsilon).pow(2).flatten(1).sum(1)
    torch.testing.assert_close(epsilon_error, scale * error.pow(2).flatten(1).sum(1), rtol=1e-9, atol=0)


def test_v_target_equals_diffusers_get_velocity():
    schedule, x0, epsilon, alpha, sigma = noised()
    velocity = schedule.scheduler.get_velocity(x0, epsilon, TIMESTEPS)
    torch.testing.assert_close(KINDS["v_prediction"].target(x0, epsilon, alpha, sigma), velocity, **FLOAT32)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "flow"])
def test_velocities_are_finite_at_both_ends(prediction_type: str):
    x0, epsilon = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for level in ((0.0, 1.0), (1.0, 0.0)):
        alpha, sigma = map(torch.tensor, level)
        target = KINDS[prediction_type].target(x0, epsilon, alpha, sigma)
        found = KINDS[prediction_type].x0_and_epsilon(target, alpha * x0 + sigma * epsilon, alpha, sigma)
        torch.testing.assert_close(found, (x0, epsilon))
