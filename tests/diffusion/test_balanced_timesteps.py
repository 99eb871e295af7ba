"""The sampler that a balancer steers: what it draws, and that it keeps it."""

import numpy as np
import pytest
import torch

from ldmprobe.diffusion.balanced_timesteps import BalancedTimesteps
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.objective import TimestepObjective
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.timesteps import LogitNormal, UniformLogSNR, UniformTimesteps
from ldmprobe.diffusion.weighting import SNRPower
from tests.helpers import FLOAT64, refused, sd_scheduler

LEVELS = torch.tensor([-4.0, 0.0, 4.0])
ONES = torch.ones(3)


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return as_schedule(sd_scheduler())


def test_before_it_is_steered_it_is_its_base(schedule: NoiseSchedule):
    sampler = BalancedTimesteps(LogitNormal(), floor=0.3)
    torch.testing.assert_close(sampler.probabilities(schedule), LogitNormal().probabilities(schedule), **FLOAT64)
    assert torch.equal(sampler.loss_factor(schedule), torch.ones(1000, dtype=torch.float64))


def test_an_even_density_is_uniform_in_log_snr_above_the_floor(schedule: NoiseSchedule):
    sampler = BalancedTimesteps(floor=0.3)
    sampler.steer(LEVELS, 7 * ONES, ONES)
    expected = 0.3 * UniformTimesteps().probabilities(schedule) + 0.7 * UniformLogSNR().probabilities(schedule)
    torch.testing.assert_close(sampler.probabilities(schedule), expected, **FLOAT64)


def test_density_per_unit_of_log_snr_is_the_given_one(schedule: NoiseSchedule):
    sampler = BalancedTimesteps(floor=1e-9)
    sampler.steer(LEVELS.flip(0), torch.tensor([1.0, 3.0, 2.0]).flip(0), ONES)
    p = sampler.probabilities(schedule).numpy()
    per_unit = p / np.abs(np.gradient(schedule.log_snr.numpy()))
    at = {level: per_unit[int(schedule.timesteps_at(torch.tensor([level]))[0])] for level in (-5.0, -2.0, 0.0, 2.0)}
    assert at[-2.0] / at[-5.0] == pytest.approx(2.0, rel=0.01)  # halfway from 1 to 3; 1 beyond the first level
    assert at[0.0] / at[-5.0] == pytest.approx(3.0, rel=0.01)
    assert at[2.0] / at[-5.0] == pytest.approx(2.5, rel=0.01)


def test_weights_change_the_loss_and_keep_its_mean(schedule: NoiseSchedule):
    sampler = BalancedTimesteps()
    sampler.steer(LEVELS, ONES, torch.tensor([1.0, 2.0, 4.0]))
    objective = TimestepObjective(schedule, SNRPower(0), sampler)
    weights = objective.weights()
    assert float((objective.probabilities() * weights).sum()) == pytest.approx(1)
    low, middle = (int(schedule.timesteps_at(torch.tensor([level]))[0]) for level in (-4.0, 0.0))
    assert float(weights[middle] / weights[low]) == pytest.approx(2, rel=0.01)


def test_what_was_decided_is_in_the_state(schedule: NoiseSchedule):
    one, other = BalancedTimesteps(), BalancedTimesteps()
    one.steer(LEVELS, torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.0, 2.0, 1.0]))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.probabilities(schedule), other.probabilities(schedule))
    assert torch.equal(one.loss_factor(schedule), other.loss_factor(schedule))
    assert one.half().table.dtype == torch.float64


@pytest.mark.parametrize("density", [[0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0]])
def test_a_density_that_is_none_is_refused_and_changes_nothing(density: list[float], schedule: NoiseSchedule):
    sampler = BalancedTimesteps()
    with pytest.raises(ValueError, match="finite densities"):
        sampler.steer(LEVELS, torch.tensor(density), ONES)
    assert torch.equal(sampler.probabilities(schedule), UniformTimesteps().probabilities(schedule))


@pytest.mark.parametrize("floor", [0.0, 1.1, -0.1])
def test_a_floor_that_is_none_is_an_error(floor: float):
    with refused("floor"):
        BalancedTimesteps(floor=floor)
