"""Timestep samplers: what they say of themselves, what they draw, and the recipes of their papers."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ldmprobe.diffusion.adaptive_timesteps import AdaptiveTimesteps, LossSecondMoment
from ldmprobe.diffusion.balanced_timesteps import BalancedTimesteps
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.timesteps import (
    BetaTimesteps,
    CosMap,
    Laplace,
    LogitNormal,
    LogNormalSigma,
    LogSNRDensity,
    Mode,
    SpeeD,
    StarvedBand,
    Stratified,
    TimestepSampler,
    UniformLogSNR,
    UniformTimesteps,
)
from tests.diffusion.catalog import SAMPLERS, STATIC_SAMPLERS, concrete_classes, schedules
from tests.helpers import FLOAT64, refused, sd_scheduler

NUM_DRAWS = 50_000

each_sampler = pytest.mark.parametrize("name", SAMPLERS)
each_schedule = pytest.mark.parametrize("of", schedules())


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return schedules()["stable diffusion, ε"]


def test_every_sampler_is_in_the_catalog_of_the_tests():
    assert {type(make()) for make in SAMPLERS.values()} == concrete_classes(TimestepSampler)
    moving = (AdaptiveTimesteps, BalancedTimesteps)
    static = {of for of in concrete_classes(TimestepSampler) if not issubclass(of, moving)}
    assert {type(make()) for make in STATIC_SAMPLERS.values()} == static


# --- densities --------------------------------------------------------------------------------------------------------


@each_sampler
@each_schedule
def test_probabilities_are_a_distribution_over_all_timesteps_with_a_loss_factor_above_0(name: str, of: str):
    sampler = SAMPLERS[name]()
    p, factor = sampler.probabilities(schedules()[of]), sampler.loss_factor(schedules()[of])
    for values in (p, factor):
        assert (values.shape, values.dtype) == ((1000,), torch.float64)
        assert values.isfinite().all()
    assert (p >= 0).all()
    assert float(p.sum()) == pytest.approx(1, rel=1e-10)
    assert (factor[p > 0] > 0).all()


@each_sampler
def test_every_timestep_of_a_schedule_with_signal_and_noise_is_drawn(name: str, schedule: NoiseSchedule):
    assert (SAMPLERS[name]().probabilities(schedule) > 0).all()


@each_sampler
@pytest.mark.parametrize("of", ["stable diffusion, ε", "flow, shift 3", "zero terminal, v"])
def test_draws_follow_the_stated_probabilities(name: str, of: str):
    sampler = SAMPLERS[name]()
    torch.manual_seed(0)
    t = sampler(NUM_DRAWS, schedules()[of])
    assert (t.shape, t.dtype, t.device.type) == ((NUM_DRAWS,), torch.int64, "cpu")
    p = sampler.probabilities(schedules()[of]).numpy()
    drawn = np.bincount(t.numpy(), minlength=1000)
    assert not drawn[p == 0].any()
    # Neighbors put together until each bin of the histogram expects 100 draws or more.
    group = np.floor(np.cumsum(p) * 0.999 * NUM_DRAWS / 100).astype(int)
    share = np.bincount(group, drawn) / NUM_DRAWS
    p = np.bincount(group, p)
    share, p = share[p > 0], p[p > 0]
    standard_error = np.sqrt(p * (1 - p) / NUM_DRAWS)
    assert (np.abs(share - p) < 5 * standard_error).all()
    assert stats.chisquare(share, p).statistic * NUM_DRAWS < stats.chi2(len(p) - 1).isf(1e-3)


@each_sampler
def test_draws_come_from_torchs_global_generator(name: str, schedule: NoiseSchedule):
    sampler, draws = SAMPLERS[name](), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sampler(100, schedule))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# --- over the timestep ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 5), (0.8, 1), (0.5, 0.5)])
@pytest.mark.parametrize("of", ["stable diffusion, ε", "zero terminal, v"])
def test_beta_equals_scipys(a: float, b: float, of: str):
    expected = np.diff(stats.beta(a, b).cdf(np.linspace(0, 1, 1001)))
    torch.testing.assert_close(
        BetaTimesteps(a, b).probabilities(schedules()[of]), torch.from_numpy(expected), **FLOAT64
    )


@pytest.mark.parametrize("num_timesteps", [1000, 500])
def test_speed_draws_as_in_the_paper(num_timesteps: int):
    k, tau = 5, 700 * num_timesteps // 1000
    t = np.arange(1, num_timesteps + 1)
    expected = np.where(t <= tau, k, 1) / (num_timesteps + tau * (k - 1))  # section 3.3
    schedule = as_schedule(sd_scheduler(num_train_timesteps=num_timesteps))
    torch.testing.assert_close(SpeeD().probabilities(schedule), torch.from_numpy(expected), **FLOAT64)


@pytest.mark.parametrize("ceiling", [0.5, 0.6, 0.8])  # with one half it does not weigh
def test_speed_weighs_by_the_change_of_the_variance(ceiling: float, schedule: NoiseSchedule):
    change = np.gradient(1 - schedule.scheduler.alphas_cumprod.double().numpy())
    expected = 1 - ceiling + (2 * ceiling - 1) * (change - change.min()) / (change.max() - change.min())
    factor = SpeeD(ceiling=ceiling).loss_factor(schedule)
    torch.testing.assert_close(factor, torch.from_numpy(expected), **FLOAT64)
    assert (float(factor.min()), float(factor.max())) == pytest.approx((1 - ceiling, ceiling))


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


# --- over the log-SNR -------------------------------------------------------------------------------------------------


def log_snr_of(flow_time: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 2 * np.log((1 - flow_time) / flow_time)


def mode(u: np.ndarray, scale: float) -> np.ndarray:
    return 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)


def shifted(time: np.ndarray, shift: float) -> np.ndarray:
    return shift * time / (1 + (shift - 1) * time)


# What each paper draws, brought to log-SNR; ``normal`` and ``u`` are standard normal and uniform.
RECIPES = {
    # Karras et al., 2022 and 2024: ln σ ~ N(P_mean, P_std²)
    "EDM": (LogNormalSigma(), lambda normal, u: -2 * (-1.2 + 1.2 * normal)),
    "EDM2": (LogNormalSigma(-0.4, 1.0), lambda normal, u: -2 * (-0.4 + normal)),
    # Esser et al., 2024, section 3.1 and eq. 23
    "logit-normal": (LogitNormal(), lambda normal, u: log_snr_of(1 / (1 + np.exp(-normal)))),
    "logit-normal .5, .6": (
        LogitNormal(0.5, 0.6),
        lambda normal, u: log_snr_of(1 / (1 + np.exp(-(0.5 + 0.6 * normal)))),
    ),
    "logit-normal, shift 3": (
        LogitNormal(shift=3.0),
        lambda normal, u: log_snr_of(shifted(1 / (1 + np.exp(-normal)), 3.0)),
    ),
    "mode 1.29": (Mode(), lambda normal, u: log_snr_of(mode(u, 1.29))),
    "mode −.9": (Mode(-0.9), lambda normal, u: log_snr_of(mode(u, -0.9))),
    "mode 1.75": (Mode(1.75), lambda normal, u: log_snr_of(mode(u, 1.75))),
    "mode at its bound": (Mode(2 / (math.pi - 2)), lambda normal, u: log_snr_of(mode(u, 2 / (math.pi - 2)))),
    "CosMap": (CosMap(), lambda normal, u: log_snr_of(1 - 1 / (np.tan(np.pi / 2 * u) + 1))),
    # Hang et al., 2024: λ = μ − b sgn(.5 − u) ln(1 − 2|u − .5|)
    "Laplace": (Laplace(), lambda normal, u: -0.5 * np.sign(0.5 - u) * np.log(1 - 2 * np.abs(u - 0.5))),
    "Laplace 1, 2": (Laplace(1, 2), lambda normal, u: 1 - 2 * np.sign(0.5 - u) * np.log(1 - 2 * np.abs(u - 0.5))),
    "uniform": (UniformLogSNR(), lambda normal, u: 60 * u - 30),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("of", ["stable diffusion, ε", "flow", "flow, shift 3", "zero terminal, v"])
def test_density_is_that_of_the_papers_recipe_within_the_schedules_range(name: str, of: str):
    sampler, recipe = RECIPES[name]
    generator = np.random.default_rng(0)
    drawn = recipe(generator.standard_normal(400_000), generator.random(400_000))
    log_snr = schedules()[of].log_snr.numpy()
    finite = np.isfinite(log_snr)
    levels = log_snr[finite]
    drawn = drawn[(drawn > levels[-1]) & (drawn < levels[0])]
    # A draw counts for the timestep nearest to it: distribution functions are compared where one ends and the next
    # begins.
    borders = (levels[1:] + levels[:-1]) / 2
    theirs = 1 - np.searchsorted(np.sort(drawn), borders, side="right") / len(drawn)
    ours = sampler.probabilities(schedules()[of]).numpy()[finite].cumsum()[:-1]
    assert np.abs(ours - theirs).max() < 2.2 / len(drawn) ** 0.5  # Kolmogorov–Smirnov at one in 10,000


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.7)])
def test_shift_moves_log_snr_by_minus_2_ln_shift(mean: float, std: float):
    """As a schedule's does: shifted timesteps of a shifted schedule are the plain ones of the plain schedule."""
    plain, moved = schedules()["flow"], schedules()["flow, shift 3"]
    torch.testing.assert_close(moved.log_snr[:-1], plain.log_snr[:-1] - 2 * math.log(3), **FLOAT64)
    found = LogitNormal(mean, std, shift=3).probabilities(moved)
    torch.testing.assert_close(found, LogitNormal(mean, std).probabilities(plain), **FLOAT64)


def test_uniform_log_snr_is_uniform_between_the_schedules_ends(schedule: NoiseSchedule):
    p, log_snr = UniformLogSNR().probabilities(schedule), schedule.log_snr
    low, high = float(log_snr.min()), float(log_snr.max())
    above = (high - (log_snr[1:] + log_snr[:-1]) / 2) / (high - low)
    torch.testing.assert_close(p.cumsum(0)[:-1], above, rtol=1e-9, atol=1e-9)
    assert stats.kstest(schedule.log_snr.numpy(), stats.uniform(low, high - low).cdf).statistic > 0.1


@pytest.mark.parametrize("name", [name for name, make in STATIC_SAMPLERS.items() if isinstance(make(), LogSNRDensity)])
@pytest.mark.parametrize("of", ["zero terminal, v", "flow"])
def test_a_timestep_without_signal_is_left_out_of_a_density_over_log_snr(name: str, of: str):
    p = SAMPLERS[name]().probabilities(schedules()[of])
    assert p[-1] == 0
    assert (p[:-1] > 0).all()


# --- variance ---------------------------------------------------------------------------------------------------------


def test_stratified_draws_each_of_as_many_equally_likely_timesteps_once(schedule: NoiseSchedule):
    torch.manual_seed(0)
    t = Stratified(UniformTimesteps())(1000, schedule)
    assert t.sort().values.tolist() == list(range(1000))
    assert abs(float(np.corrcoef(t.numpy(), np.arange(1000))[0, 1])) < 0.1  # ranks and images see no order


@pytest.mark.parametrize("name", ["uniform", "uniform in log-SNR", "logit-normal", "second moment"])
def test_stratified_keeps_the_expectation_and_lowers_the_variance_of_a_batch(name: str, schedule: NoiseSchedule):
    sampler, loss = SAMPLERS[name](), (0.3 * schedule.log_snr).tanh()
    expected = float((sampler.probabilities(schedule) * loss).sum())
    torch.manual_seed(0)
    plain, stratified = (
        np.array([float(loss[draw(32, schedule)].mean()) for _ in range(400)])
        for draw in (sampler, Stratified(sampler))
    )
    assert abs(stratified.mean() - expected) < 4 * stratified.std() / 20
    assert abs(plain.mean() - expected) < 4 * plain.std() / 20
    assert stratified.var() < plain.var() / 20


def test_stratified_lets_an_adaptive_sampler_hear_the_losses():
    inner = LossSecondMoment(3, history=1)
    Stratified(inner).observe(torch.arange(3), torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
    assert inner.losses.flatten().tolist() == [1, 2, 3]


# --- bad arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "settings", "message"),
    [
        *[(StarvedBand, {"start": a, "stop": 5}, f"StarvedBand from {a} to 5 is empty") for a in (5, 6, -1)],
        *[(StarvedBand, {"start": 0, "stop": 10, "share": x}, rf"share is {x}; expected a number in \(0, 1\]") for x in (0, -0.1, 1.1)],
        *[(BetaTimesteps, {"a": a, "b": b}, f"got a {a}, b {b}; expected numbers above 0") for a, b in [(0, 1), (1, 0), (-1, 1), (1, math.nan)]],
        *[(SpeeD, {"tau": x}, f"SpeeD got .*tau {x}.*; expected 0 < tau <= 1000") for x in (0, 1001)],
        *[(SpeeD, {"ceiling": x}, f"SpeeD got .*ceiling {x}.*; expected 0 < tau <= 1000") for x in (0.4, 1, math.nan)],
        (SpeeD, {"suppression": 0.5}, "SpeeD got .*suppression 0.5.*; expected 0 < tau <= 1000"),
        *[(Mode, {"scale": x}, f"Mode got scale {x}; expected a number from −1 to 1.75") for x in (-1.01, 1.76, math.nan)],
        *[
            (kind, {name: x}, f"{kind.__name__} got {name} {x}; expected a finite number above 0")
            for kind, name in [(LogNormalSigma, "std"), (LogitNormal, "std"), (LogitNormal, "shift"), (Laplace, "scale")]
            for x in (0.0, -1.0, math.nan)
        ],
    ],
)  # fmt: skip
def test_settings_that_are_no_density_are_refused(sampler: type[TimestepSampler], settings: dict, message: str):
    with refused(message):
        sampler(**settings)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (LogNormalSigma(mean=50, std=0.1), r"LogNormalSigma draws nothing within .* log-SNR -5.4 … 7.1; move its"),
        (StarvedBand(1000, 1100), "StarvedBand starts at 1000, beyond the schedule's 1000 timesteps"),
    ],
)
def test_a_density_outside_the_schedule_is_refused(sampler: TimestepSampler, message: str, schedule: NoiseSchedule):
    with refused(message):
        sampler.probabilities(schedule)
