"""Samplers that follow the losses: what they make of them, unbiased, and the same after a restart."""

import io
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ldmprobe.diffusion.adaptive_timesteps import AdaptiveLoss, AdaptiveTimesteps, LossSecondMoment, VarianceAware
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.timesteps import UniformLogSNR, UniformTimesteps
from tests.diffusion.catalog import ADAPTIVE_SAMPLERS, schedules
from tests.helpers import FLOAT64, refused, sd_scheduler

BOTH = {
    "second moment": lambda: LossSecondMoment(20, history=3),
    "adaptive": lambda: AdaptiveLoss(num_bins=30, decay=0.9),
}
BASE = {"second moment": UniformTimesteps, "adaptive": UniformLogSNR}
both = pytest.mark.parametrize("name", BOTH)
ALL = {**BOTH, "variance": lambda: VarianceAware(num_bins=30, decay=0.9)}
each = pytest.mark.parametrize("name", ALL)


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    """20 timesteps."""
    return as_schedule(sd_scheduler(num_train_timesteps=20, beta_end=0.5))


def batches(schedule: NoiseSchedule, count: int, seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Timesteps, log-SNR and losses of batches of 16."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        t = torch.randint(schedule.num_timesteps, (16,), generator=generator)
        loss = (0.4 * schedule.log_snr[t]).exp() * (0.5 + torch.rand(16, generator=generator))
        found.append((t, schedule.log_snr[t].float(), loss.float()))
    return found


# --- second moment ----------------------------------------------------------------------------------------------------


def test_second_moment_is_uniform_until_every_timestep_has_its_history(schedule: NoiseSchedule):
    sampler = LossSecondMoment(20, history=3)
    uniform = UniformTimesteps().probabilities(schedule)
    t = torch.arange(20).repeat(3)
    sampler.observe(t[:-1], schedule.log_snr[t[:-1]], t[:-1] + 1.0)
    assert torch.equal(sampler.probabilities(schedule), uniform)
    assert sampler.loss_factor(schedule).tolist() == pytest.approx([1] * 20)
    sampler.observe(t[-1:], schedule.log_snr[t[-1:]], t[-1:] + 1.0)
    assert not torch.allclose(sampler.probabilities(schedule), uniform)


@pytest.mark.parametrize("uniform", [0.001, 0.3, 1.0])
def test_second_moment_is_the_papers_of_the_last_losses(uniform: float, schedule: NoiseSchedule):
    sampler = LossSecondMoment(20, history=3, uniform=uniform)
    seen: list[list[float]] = [[] for _ in range(20)]
    for t, log_snr, loss in batches(schedule, 40):
        sampler.observe(t, log_snr, loss)
        for timestep, value in zip(t.tolist(), loss.tolist(), strict=True):
            seen[timestep].append(value)
    assert min(len(losses) for losses in seen) > 6  # the oldest are forgotten
    root = np.array([np.sqrt(np.mean(np.square(losses[-3:]))) for losses in seen])
    expected = (1 - uniform) * root / root.sum() + uniform / 20
    torch.testing.assert_close(sampler.probabilities(schedule), torch.from_numpy(expected), **FLOAT64)


def test_second_moment_of_another_number_of_timesteps_is_an_error(schedule: NoiseSchedule):
    with refused("is for 1000 timesteps, the schedule has 20; set `num_timesteps: 20`"):
        LossSecondMoment().probabilities(schedule)


def test_second_moment_lowers_the_variance_of_the_loss(schedule: NoiseSchedule):
    sampler = LossSecondMoment(20, history=3)
    for batch in batches(schedule, 40):
        sampler.observe(*batch)
    loss = (0.4 * schedule.log_snr).exp()
    p, factor = sampler.probabilities(schedule), sampler.loss_factor(schedule)
    mean = float(loss.mean())
    assert float((p * (factor * loss) ** 2).sum()) - mean**2 < 0.1 * (float((loss**2).mean()) - mean**2)


# --- adaptive ---------------------------------------------------------------------------------------------------------


def test_adaptive_is_uniform_in_log_snr_before_it_has_seen_anything(schedule: NoiseSchedule):
    sampler = AdaptiveLoss()
    torch.testing.assert_close(sampler.probabilities(schedule), UniformLogSNR().probabilities(schedule), **FLOAT64)
    torch.testing.assert_close(sampler.loss_factor(schedule), torch.ones(20, dtype=torch.float64), **FLOAT64)


def averages(losses: list[float], decay: float) -> float:
    """The mean as long as that is the shorter memory, then the moving average."""
    average = 0.0
    for k, value in enumerate(losses):
        keep = min(decay, k / (k + 1))
        average = keep * average + (1 - keep) * value
    return average


def losses_seen(sampler: AdaptiveTimesteps, schedule: NoiseSchedule) -> tuple[list[int], dict[int, list[float]]]:
    """The bin of each timestep, of 30, and the losses by bin that a sampler has been shown."""
    bins = np.floor((schedule.log_snr.numpy() + 12) / 0.8).astype(int).tolist()
    seen: dict[int, list[float]] = {place: [] for place in bins}
    for t, log_snr, loss in batches(schedule, 40):
        sampler.observe(t, log_snr, loss)
        for timestep, value in zip(t.tolist(), loss.tolist(), strict=True):
            seen[bins[timestep]].append(value)
    return bins, seen


def test_adaptive_follows_the_average_loss_of_each_bin(schedule: NoiseSchedule):
    sampler = AdaptiveLoss(num_bins=30, decay=0.9, floor=0.001)
    bins, seen = losses_seen(sampler, schedule)
    assert min(len(losses) for losses in seen.values()) > 20  # beyond the plain mean
    density = np.array([averages(seen[place], 0.9) for place in bins])
    expected = UniformLogSNR().probabilities(schedule).numpy() * density
    found = sampler.probabilities(schedule)
    torch.testing.assert_close(found, torch.from_numpy(expected / expected.sum()), **FLOAT64)
    # What is trained keeps its size: its mean is that of the loss uniformly in log-SNR.
    assert float((found * sampler.loss_factor(schedule)).sum()) == pytest.approx(1)


def test_adaptive_draws_a_bin_it_has_not_seen_like_the_largest(schedule: NoiseSchedule):
    sampler = AdaptiveLoss()
    t = torch.tensor([3, 10])
    sampler.observe(t, schedule.log_snr[t], torch.tensor([1.0, 4.0]))
    density = sampler.probabilities(schedule) / UniformLogSNR().probabilities(schedule)
    relative = density / density[10]
    assert float(relative[3]) == pytest.approx(0.25)
    assert relative[[0, 7, 19]].tolist() == pytest.approx([1, 1, 1])


def test_adaptive_never_goes_below_its_floor(schedule: NoiseSchedule):
    sampler = AdaptiveLoss(floor=0.05)
    t = torch.arange(20)
    sampler.observe(t, schedule.log_snr, torch.where(t == 10, 1.0, 1e-9))
    density = sampler.probabilities(schedule) / UniformLogSNR().probabilities(schedule)
    assert float(density.min() / density.max()) == pytest.approx(0.05)


def test_adaptive_takes_losses_where_there_is_no_signal():
    schedule = schedules()["zero terminal, v"]
    sampler = AdaptiveLoss()
    sampler.observe(
        torch.tensor([999, 998, 0]), torch.tensor([-math.inf, -15.4, math.inf]), torch.tensor([1.0, 3.0, 2.0])
    )
    assert (sampler.seen[0], sampler.average[0]) == (2, 2)
    assert (sampler.seen[-1], sampler.average[-1]) == (1, 2)
    p = sampler.probabilities(schedule)
    assert p.isfinite().all()
    assert p[-1] == 0


# --- variance-aware ---------------------------------------------------------------------------------------------------


def test_variance_aware_divides_by_the_running_deviation_of_each_bin(schedule: NoiseSchedule):
    sampler = VarianceAware(power=0.5, num_bins=30, decay=0.9, max_ratio=100)
    bins, seen = losses_seen(sampler, schedule)
    deviation = {
        place: math.sqrt(averages([v**2 for v in losses], 0.9) - averages(losses, 0.9) ** 2)
        for place, losses in seen.items()
    }
    mean = np.mean(list(deviation.values()))
    expected = np.array([(deviation[place] / mean) ** -0.5 for place in bins])
    torch.testing.assert_close(sampler.loss_factor(schedule), torch.from_numpy(expected), rtol=1e-6, atol=0)
    torch.testing.assert_close(sampler.probabilities(schedule), UniformTimesteps().probabilities(schedule), **FLOAT64)


def test_variance_aware_is_plain_before_it_has_seen_anything_and_bounded_after(schedule: NoiseSchedule):
    sampler = VarianceAware(max_ratio=2)
    assert sampler.loss_factor(schedule).tolist() == [1] * 20
    for batch in batches(schedule, 40):
        sampler.observe(*batch)
    factor = sampler.loss_factor(schedule)
    assert float(factor.min()) == pytest.approx(0.5)
    assert float(factor.max()) == pytest.approx(2)
    sampler = VarianceAware()
    sampler.observe(torch.tensor([3]), schedule.log_snr[[3]], torch.tensor([1.0]))  # one loss has no deviation
    assert sampler.loss_factor(schedule).tolist() == [1] * 20


# --- both ---------------------------------------------------------------------------------------------------------------


@both
def test_importance_weights_are_unbiased(name: str, schedule: NoiseSchedule):
    sampler, f = BOTH[name](), 2 + schedule.log_snr.sin()
    base = BASE[name]().probabilities(schedule)
    for batch in batches(schedule, 40):
        sampler.observe(*batch)
        p, factor = sampler.probabilities(schedule), sampler.loss_factor(schedule)
        torch.testing.assert_close((p * factor * f).sum(), (base * f).sum(), **FLOAT64)
    assert float((p / base).max() / (p / base).min()) > 3  # far from where it started
    torch.manual_seed(0)
    drawn = (factor * f)[sampler(100_000, schedule)]
    assert abs(float(drawn.mean() - (base * f).sum())) < 4 * float(drawn.std()) / 100_000**0.5


@pytest.mark.parametrize("name", ["second moment", "adaptive"])
@pytest.mark.parametrize("of", ["zero terminal, v", "flow"])
def test_importance_weights_are_unbiased_without_a_signal_at_the_end(name: str, of: str):
    sampler, schedule = ADAPTIVE_SAMPLERS[name](), schedules()[of]
    found = sampler.probabilities(schedule) * sampler.loss_factor(schedule)
    torch.testing.assert_close(found, BASE[name]().probabilities(schedule), **FLOAT64)


def saved_and_loaded(sampler: AdaptiveTimesteps, fresh: AdaptiveTimesteps) -> AdaptiveTimesteps:
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@each
@pytest.mark.parametrize("stop", [1, 25])  # before the history is full, and after
def test_a_restarted_sampler_goes_on_identically(name: str, stop: int, schedule: NoiseSchedule):
    through = ALL[name]()
    for batch in batches(schedule, stop):
        through.observe(*batch)
    restarted = saved_and_loaded(through, ALL[name]())
    for batch in batches(schedule, 30, seed=1):
        draws = []
        for sampler in (through, restarted):
            torch.manual_seed(0)
            draws.append(sampler(32, schedule))
            sampler.observe(*batch)
        assert torch.equal(draws[0], draws[1])
        assert torch.equal(through.probabilities(schedule), restarted.probabilities(schedule))
        assert torch.equal(through.loss_factor(schedule), restarted.loss_factor(schedule))


@each
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_left_out(name: str, bad: float, schedule: NoiseSchedule):
    """Such as mixed precision has now and then: its step is skipped, and training goes on."""
    with_bad, without = ALL[name](), ALL[name]()
    for t, log_snr, loss in batches(schedule, 40):
        with_bad.observe(t, log_snr, loss)
        without.observe(t, log_snr, loss)
        with_bad.observe(t[:2], log_snr[:2], torch.full((2,), bad))
    assert torch.equal(with_bad.probabilities(schedule), without.probabilities(schedule))
    assert torch.equal(with_bad.loss_factor(schedule), without.loss_factor(schedule))


@both
def test_losses_that_are_all_0_leave_the_base(name: str, schedule: NoiseSchedule):
    sampler = BOTH[name]()
    t = torch.arange(20).repeat(3)
    sampler.observe(t, schedule.log_snr[t], torch.zeros(60))
    torch.testing.assert_close(sampler.probabilities(schedule), BASE[name]().probabilities(schedule), **FLOAT64)


@each
def test_a_module_in_half_precision_keeps_the_state_exact(name: str, schedule: NoiseSchedule):
    """A moving average of decay .999 stands still in bfloat16."""
    exact, cast = ALL[name](), ALL[name]().to(torch.bfloat16)
    for batch in batches(schedule, 40):
        exact.observe(*batch)
        cast.observe(*batch)
    assert torch.equal(cast.probabilities(schedule), exact.probabilities(schedule))
    assert torch.equal(cast.loss_factor(schedule), exact.loss_factor(schedule))


@pytest.mark.parametrize(
    ("kind", "setting", "expected"),
    [
        *[(LossSecondMoment, {"uniform": x}, "history >= 1") for x in (0, 1.1, math.nan)],
        (LossSecondMoment, {"history": 0}, "history >= 1"),
        *[(AdaptiveLoss, {"decay": x}, "num_bins >= 1") for x in (1.0, -0.1)],
        *[(AdaptiveLoss, {"floor": x}, "num_bins >= 1") for x in (0, 1.1, math.nan)],
        (AdaptiveLoss, {"num_bins": 0}, "num_bins >= 1"),
        *[(VarianceAware, {"power": x}, "0 < power") for x in (0, 3)],
        *[(VarianceAware, {name: x}, "0 < power") for name, x in (("num_bins", 0), ("decay", 1.0), ("max_ratio", 1.0))],
    ],
)
def test_a_setting_out_of_range_is_refused(kind: type[AdaptiveTimesteps], setting: dict[str, float], expected: str):
    ((name, value),) = setting.items()
    with refused(f"{kind.__name__} got .*{name} {value}.*; expected {expected}"):
        kind(**setting)
