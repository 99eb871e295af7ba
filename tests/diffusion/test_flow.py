"""Flow matching against diffusers' FlowMatchEulerDiscreteScheduler: its tables, its sampling grid and its own steps."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ldmprobe import DDIM
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.prediction import KINDS
from ldmprobe.diffusion.trajectory import sampling_steps
from tests.diffusion.test_trajectory import network, noise
from tests.helpers import FLOAT32, FLOAT64, WHOLE_PATH, refused, told

SHIFTS = [1.0, 3.0]


@pytest.mark.parametrize("shift", SHIFTS)
def test_tables_are_those_of_diffusers_from_clean_to_noisy(shift: float):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = as_schedule(scheduler)
    assert schedule.prediction.name == "flow"
    assert schedule.alpha.dtype == schedule.sigma.dtype == torch.float64
    torch.testing.assert_close(schedule.sigma.float(), scheduler.sigmas.flip(0), **FLOAT32)
    torch.testing.assert_close(schedule.model_time, scheduler.timesteps.flip(0), **FLOAT32)
    torch.testing.assert_close(schedule.alpha + schedule.sigma, torch.ones(1000, dtype=torch.float64), **FLOAT64)
    assert (schedule.log_snr.diff() < 0).all()
    assert schedule.log_snr[-1] == -torch.inf


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_steps", [1, 10, 50])
def test_path_equals_diffusers(shift: float, num_steps: int):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    grid = as_schedule(scheduler).native_grid(num_steps)
    scheduler.set_timesteps(num_steps)
    torch.testing.assert_close(grid.timesteps, scheduler.timesteps, **FLOAT32)
    z = noise(torch.float32)
    steps = list(sampling_steps(told(network), z, DDIM().program(grid), KINDS["flow"]))
    assert len(steps) == num_steps
    for t, step in zip(scheduler.timesteps, steps, strict=True):
        z = scheduler.step(network(z, float(t)), t, z).prev_sample
        torch.testing.assert_close(step.z_s, z, **WHOLE_PATH)


def test_making_a_grid_leaves_the_scheduler_in_training_as_it_was():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    before = scheduler.sigmas.clone(), scheduler.timesteps.clone()
    as_schedule(scheduler).native_grid(10)
    assert torch.equal(scheduler.sigmas, before[0])
    assert torch.equal(scheduler.timesteps, before[1])


def test_a_shift_set_later_holds_for_tables_and_grid():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_shift(3.0)
    schedule = as_schedule(scheduler)
    torch.testing.assert_close(schedule.sigma, as_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0)).sigma, **FLOAT64)
    grid = schedule.native_grid(10)
    scheduler.set_timesteps(10)
    torch.testing.assert_close(grid.sigma_t.float(), scheduler.sigmas[:-1], **FLOAT32)


@pytest.mark.parametrize(
    "setting",
    [
        *("shift_terminal", "invert_sigmas", "stochastic_sampling"),
        *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
    ],
)
def test_settings_without_closed_form_are_refused(setting: str):
    with refused(f"with `{setting}` cannot be probed; switch it off"):
        as_schedule(FlowMatchEulerDiscreteScheduler(**{setting: 0.02 if setting == "shift_terminal" else True}))
