"""PairedMoments against numpy on all samples at once; the jackknife against the standard error of a mean."""

import numpy as np
import pytest
import torch

from ldmprobe.analysis.intervals import NORMAL, jackknife_interval, student
from ldmprobe.analysis.moments import NUM_GROUPS, PairedMoments, group_of
from tests.helpers import FLOAT64


def pairs(n: int = 100, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    x, e = torch.randn(2, n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, 0.7 * x + 0.5 * e + 2


def assert_numpy_agrees(moments: PairedMoments, x: torch.Tensor, y: torch.Tensor) -> None:
    x, y = x.numpy(), y.numpy()
    cov = [np.cov(x[:, i], y[:, i])[0, 1] for i in range(x.shape[1])]
    expected = (x.mean(0), y.mean(0), x.var(0, ddof=1), y.var(0, ddof=1), cov)
    found = (moments.mean_x, moments.mean_y, moments.var_x, moments.var_y, moments.cov_xy)
    for ours, numpys in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torch.as_tensor(np.array(numpys)), **FLOAT64)


def test_batches_of_any_size_and_order_add_up_to_the_whole():
    x, y = pairs()
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    parts = [PairedMoments.from_samples(x[ids], y[ids], ids) for ids in order.split([1, 7, 92])]
    merged, whole = parts[0] + parts[1] + parts[2], PairedMoments.from_samples(x, y, torch.arange(100))
    assert whole.n.shape == (NUM_GROUPS, 1)
    assert whole.sums.shape == (5, NUM_GROUPS, 5)
    assert whole.total().n.tolist() == [100]
    torch.testing.assert_close(merged.n, whole.n, **FLOAT64)
    torch.testing.assert_close(merged.sums, whole.sums, **FLOAT64)
    assert_numpy_agrees(merged.total(), x, y)


def test_a_group_holds_its_samples_and_is_left_out_alone():
    x, y = pairs()
    moments = PairedMoments.from_samples(x, y, torch.arange(100), num_groups=8)
    left_out = moments.leave_one_out()
    for group in range(8):
        mine = group_of(torch.arange(100), 8) == group
        for found, rows in ((moments, mine), (left_out, ~mine)):
            assert_numpy_agrees(PairedMoments(found.n[group], found.sums[:, group]), x[rows], y[rows])


def test_float32_samples_are_summed_in_float64():
    x = 1000 + torch.randn(4096, 1, generator=torch.Generator().manual_seed(0))
    moments = PairedMoments.from_samples(x, x, torch.arange(4096)).total()
    assert moments.sums.dtype == torch.float64
    np.testing.assert_allclose(moments.var_x.numpy(), x.double().numpy().var(0, ddof=1), rtol=1e-8)


def test_jackknife_of_a_mean_is_the_standard_error_between_groups():
    x, _ = pairs(n=32 * 4)
    moments = PairedMoments.from_samples(x, x, torch.arange(128))
    lower, upper = jackknife_interval(moments.total().mean_x, moments.leave_one_out().mean_x)
    group_means = x[group_of(torch.arange(128)).argsort(stable=True)].view(32, 4, 5).mean(1).numpy()
    half_width = 1.96 * group_means.std(0, ddof=1) / np.sqrt(32)
    np.testing.assert_allclose(((upper - lower) / 2).numpy(), half_width, rtol=1e-10)
    torch.testing.assert_close((upper + lower) / 2, moments.total().mean_x, **FLOAT64)


def test_jackknife_interval_over_few_groups_holds_what_it_says_by_students_factor():
    draws = np.random.default_rng(0).standard_normal((3, 4000))
    without = torch.from_numpy((draws.sum(0) - draws) / 2)
    for factor, least, most in ((student(3), 0.94, 0.96), (NORMAL, 0.7, 0.85)):
        lower, upper = jackknife_interval(torch.from_numpy(draws.mean(0)), without, factor)
        assert least < float(((lower < 0) & (upper > 0)).double().mean()) < most


def test_jackknife_interval_of_a_mean_has_the_known_width_and_coverage():
    n, repeats, truth = 256, 2000, 0.5
    x = truth + 3 * torch.randn(n, repeats, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = PairedMoments.from_samples(x, x, torch.arange(n))
    lower, upper = jackknife_interval(moments.total().mean_x, moments.leave_one_out().mean_x)
    # The squared half-width is unbiased for 1.96² σ²/n; its standard error here is √(2/31)/√2000 = .6 %.
    width2 = float((((upper - lower) / 2) ** 2).mean())
    assert abs(width2 / (1.96**2 * 9 / n) - 1) < 4 * np.sqrt(2 / 31 / repeats)
    # 1.96 standard errors known to 31 degrees of freedom cover .941; the standard error here is .005.
    coverage = float(((lower < truth) & (truth < upper)).double().mean())
    assert abs(coverage - 0.941) < 4 * 0.0053


@pytest.mark.parametrize("number", [128, 256, 2048])
def test_groups_are_of_one_size_and_do_not_go_with_the_classes(number):
    sample = torch.arange(number)
    group = group_of(sample)
    assert group.bincount(minlength=NUM_GROUPS).tolist() == [number // NUM_GROUPS] * NUM_GROUPS
    for classes in (2, 3, 4, 8, 10, 16, 50):
        counts = torch.zeros(NUM_GROUPS, classes)
        counts.index_put_((group, sample % classes), torch.ones(number), accumulate=True)
        chance = (number / NUM_GROUPS / classes * (1 - 1 / classes)) ** 0.5
        assert float((counts - counts.mean()).pow(2).mean().sqrt()) < 1.1 * chance
