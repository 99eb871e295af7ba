"""Timestep samplers: what they say of themselves, and what they draw."""

import numpy as np
import pytest
import torch
from scipy import stats

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.timesteps import StarvedBand, TimestepSampler, UniformLogSNR, UniformTimesteps
from ldmprobe.errors import ConfigurationError
from tests.helpers import FLOAT64, sd_scheduler

SAMPLERS = [UniformTimesteps(), UniformLogSNR(), StarvedBand(300, 600), StarvedBand(0, 150, 0.2)]
NUM_DRAWS = 50_000


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(sd_scheduler())


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_probabilities_are_a_distribution_over_all_timesteps(sampler: TimestepSampler, schedule: NoiseSchedule):
    p = sampler.probabilities(schedule)
    assert p.shape == (1000,)
    assert p.dtype == torch.float64
    assert (p > 0).all()
    assert float(p.sum()) == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_draws_follow_the_stated_probabilities(sampler: TimestepSampler, schedule: NoiseSchedule):
    torch.manual_seed(0)
    t = sampler(NUM_DRAWS, schedule)
    assert t.shape == (NUM_DRAWS,)
    assert t.dtype == torch.int64
    share = np.bincount(t.numpy() // 50, minlength=20) / NUM_DRAWS
    p = sampler.probabilities(schedule).view(20, 50).sum(1).numpy()
    standard_error = np.sqrt(p * (1 - p) / NUM_DRAWS)  # binomial: .001 where p = .05
    assert (np.abs(share - p) < 4 * standard_error).all()
    assert stats.chisquare(share * NUM_DRAWS, p * NUM_DRAWS).pvalue > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_draws_come_from_torchs_global_generator(sampler: TimestepSampler, schedule: NoiseSchedule):
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sampler(100, schedule))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(("start", "stop", "share"), [(300, 600, 0.01), (0, 150, 0.2), (700, 1000, 1.0)])
def test_starved_band_draws_a_timestep_inside_share_times_as_often(start, stop, share, schedule: NoiseSchedule):
    p = StarvedBand(start, stop, share).probabilities(schedule)
    inside = torch.zeros(1000, dtype=torch.bool)
    inside[start:stop] = True
    outside_level = 1 / (1000 - (stop - start) * (1 - share))
    torch.testing.assert_close(
        p[inside], torch.full((stop - start,), share * outside_level).double(), **{**FLOAT64, "rtol": 1e-6}
    )
    torch.testing.assert_close(p[~inside].max(), p[~inside].min(), **FLOAT64)
    assert float(p[inside].sum()) == pytest.approx((stop - start) * share * outside_level, rel=1e-10)


def test_uniform_log_snr_is_uniform_between_the_schedules_ends(schedule: NoiseSchedule):
    torch.manual_seed(0)
    log_snr = schedule.log_snr[UniformLogSNR()(5000, schedule)].numpy()
    low, high = float(schedule.log_snr.min()), float(schedule.log_snr.max())
    # The first timestep spans half its gap of .7 on one side only: the steps of the distribution are at most .06 high.
    assert stats.kstest(log_snr, stats.uniform(low, high - low).cdf).statistic < 0.06
    assert stats.kstest(schedule.log_snr.numpy(), stats.uniform(low, high - low).cdf).statistic > 0.1


def test_uniform_log_snr_leaves_out_a_timestep_without_signal():
    schedule = NoiseSchedule(sd_scheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    p = UniformLogSNR().probabilities(schedule)
    assert p.isfinite().all()
    assert p[-1] == 0
    assert float(p.sum()) == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (6, 5), (-1, 5)])
def test_empty_band_is_an_error(start: int, stop: int):
    with pytest.raises(ConfigurationError, match=f"StarvedBand from {start} to {stop} is empty"):
        StarvedBand(start, stop)


@pytest.mark.parametrize("share", [0, -0.1, 1.1])
def test_share_outside_0_to_1_is_an_error(share: float):
    with pytest.raises(ConfigurationError, match=rf"share is {share}; expected a number in \(0, 1\]"):
        StarvedBand(0, 10, share)
