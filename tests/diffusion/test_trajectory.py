"""Sampling steps against diffusers.DDIMScheduler.step, latent by latent."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.prediction import KINDS
from ldmprobe.diffusion.samplers import DDIM
from ldmprobe.diffusion.trajectory import SamplingStep, sampling_steps
from tests.diffusion.catalog import ZERO_TERMINAL
from tests.helpers import FLOAT64, WHOLE_PATH, sd_scheduler, told


def network(z_t: Tensor, timestep: int) -> Tensor:
    """Some smooth function of z_t and t."""
    return torch.tanh(1.5 * z_t + 0.2) * (1 - timestep / 4000) + 0.1 * z_t


def our_path(scheduler: DDIMScheduler, num_steps: int, z_T: Tensor) -> list[SamplingStep]:
    schedule = as_schedule(scheduler)
    return list(
        sampling_steps(told(network), z_T, DDIM().program(schedule.native_grid(num_steps)), schedule.prediction)
    )


def diffusers_path(scheduler: DDIMScheduler, num_steps: int, z_T: Tensor) -> list[Tensor]:
    scheduler.set_timesteps(num_steps)
    path, z = [], z_T
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, int(t)), t, z, eta=0.0).prev_sample
        path.append(z)
    return path


def noise(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def assert_same_path(scheduler: DDIMScheduler, num_steps: int, dtype: torch.dtype = torch.float64) -> None:
    ours = torch.stack([step.z_s for step in our_path(scheduler, num_steps, noise(dtype))])
    theirs = torch.stack(diffusers_path(scheduler, num_steps, noise(dtype)))
    assert ours.dtype == theirs.dtype == dtype
    torch.testing.assert_close(ours, theirs, **WHOLE_PATH)


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_path_equals_diffusers(spacing: str, prediction_type: str, set_alpha_to_one: bool, clip_sample: bool):
    scheduler = sd_scheduler(
        timestep_spacing=spacing,
        prediction_type=prediction_type,
        set_alpha_to_one=set_alpha_to_one,
        clip_sample=clip_sample,
    )
    for num_steps in (1, 7, 50):  # 7 does not divide 1000
        assert_same_path(scheduler, num_steps)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_path_equals_diffusers_with_as_many_steps_as_timesteps(spacing: str):
    assert_same_path(sd_scheduler(num_train_timesteps=100, steps_offset=0, timestep_spacing=spacing), 100)


def test_path_equals_diffusers_in_float32():
    assert_same_path(sd_scheduler(), 50, torch.float32)


@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_path_equals_diffusers_from_zero_terminal_snr(num_steps: int):
    assert_same_path(sd_scheduler(**ZERO_TERMINAL), num_steps)


def test_clipping_matters_in_the_comparison():
    clipped, free = (our_path(sd_scheduler(clip_sample=clip), 10, noise())[-1].z_s for clip in (True, False))
    assert (clipped - free).abs().max() > 0.1


def test_each_step_starts_where_the_last_one_ended_and_carries_its_own_parts():
    scheduler = sd_scheduler()
    steps = our_path(scheduler, 10, noise())
    grid = as_schedule(scheduler).native_grid(10)
    assert [step.index for step in steps] == list(range(10))
    assert [step.timestep for step in steps] == grid.timesteps.tolist()
    assert torch.equal(steps[0].z_t, noise())
    for k, step in enumerate(steps):
        torch.testing.assert_close(grid.alpha_t[k] * step.x0 + grid.sigma_t[k] * step.epsilon, step.z_t, **FLOAT64)
        torch.testing.assert_close(grid.alpha_s[k] * step.x0 + grid.sigma_s[k] * step.epsilon, step.z_s, **FLOAT64)
    for before, after in pairwise(steps):
        assert after.z_t is before.z_s


def test_steps_are_taken_one_at_a_time():
    calls = []
    schedule = as_schedule(sd_scheduler())

    def counting(z_t: Tensor, timestep: int) -> Tensor:
        calls.append(timestep)
        return network(z_t, timestep)

    steps = sampling_steps(told(counting), noise(), DDIM().program(schedule.native_grid(10)), KINDS["epsilon"])
    next(steps)
    next(steps)
    assert len(calls) == 2
