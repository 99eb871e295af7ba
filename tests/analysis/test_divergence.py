"""KL estimates against torch.distributions, against simulations whose truth is known, and against F.kl_div."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ldmprobe.analysis.divergence import (
    gaussian_js,
    gaussian_kl,
    gaussian_kl_to_known,
    paired_gaussian_kl,
    softmax_kl,
    unbiased_unexplained,
)
from ldmprobe.analysis.moments import PairedMoments, group_of
from tests.helpers import FLOAT64

# mean gap, variance of x, variance of y
NULL = (0.0, 1.0, 1.0)
TRUTHS = [NULL, (0.1, 1.0, 0.8), (0.5, 1.0, 0.25), (0.5, 0.25, 1.0)]


def simulate(n: int, rho: float, truth: tuple[float, float, float], repeats: int) -> PairedMoments:
    """``repeats`` independent experiments, side by side as directions."""
    gap, var_x, var_y = truth
    x, e = torch.randn(2, n, repeats, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    y = rho * x + (1 - rho**2) ** 0.5 * e
    return PairedMoments.from_samples(var_x**0.5 * x + gap, var_y**0.5 * y, torch.arange(n)).total()


def true_kl(truth: tuple[float, float, float], reverse: bool = False) -> float:
    gap, var_x, var_y = truth
    x, y = Normal(gap, var_x**0.5), Normal(0.0, var_y**0.5)
    return float(kl_divergence(y, x) if reverse else kl_divergence(x, y))


def assert_unbiased(estimates: Tensor, uncorrected: Tensor, truth: float) -> None:
    """Within 4 standard errors of the truth, plus 5 % of the bias that was to be removed (the correction is of first
    order in 1/N: the correlation and the variance of the gap are themselves estimated)."""
    standard_error = float(estimates.std()) / len(estimates) ** 0.5
    removed = float(uncorrected.mean()) - truth
    assert abs(float(estimates.mean()) - truth) < 4 * standard_error + 0.05 * abs(removed)


def test_gaussian_kl_equals_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean_x, mean_y = torch.randn(2, 3, 50, generator=generator, dtype=torch.float64)
    var_x, var_y = torch.rand(2, 3, 50, generator=generator, dtype=torch.float64) + 0.05
    expected = kl_divergence(Normal(mean_x, var_x.sqrt()), Normal(mean_y, var_y.sqrt()))
    torch.testing.assert_close(gaussian_kl(mean_x, var_x, mean_y, var_y), expected, **FLOAT64)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("rho", [0.0, 0.9, 0.999])
@pytest.mark.parametrize(("n", "repeats"), [(64, 5000), (512, 1500)])
def test_paired_estimate_is_unbiased(n: int, repeats: int, rho: float, truth: tuple, reverse: bool):
    moments = simulate(n, rho, truth, repeats)
    sides = (moments.mean_x, moments.var_x), (moments.mean_y, moments.var_y)
    x, y = reversed(sides) if reverse else sides
    raw = gaussian_kl(*x, *y)
    assert_unbiased(paired_gaussian_kl(moments, reverse), raw, true_kl(truth, reverse))
    if truth == NULL:
        assert float(raw.mean()) > 10 * float(raw.std()) / repeats**0.5  # a bias that this could have seen


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 0.3, -3.7, 100.7])
@pytest.mark.parametrize("n", [60, 251, 999])
def test_a_direction_that_does_not_vary_reads_nan(n: int, constant: float, dtype: torch.dtype, reverse: bool):
    # The variance of a constant, from sums, is 0 only up to rounding: KL there would read 1e15 nats.
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    y = 0.9 * x
    y[:, 0] = constant
    kl = paired_gaussian_kl(PairedMoments.from_samples(x, y, torch.arange(n)).total(), reverse)
    assert bool(kl[0].isnan())
    assert float(kl[1]) == pytest.approx(true_kl((0.0, 1.0, 0.81), reverse), rel=0.05)


def test_estimates_of_groups_are_those_of_each_group_alone():
    x, y = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = PairedMoments.from_samples(x, y, torch.arange(100), num_groups=4)
    together = paired_gaussian_kl(groups)
    assert together.shape == (4, 3)
    for g in range(4):
        mine = group_of(torch.arange(100), 4) == g
        alone = PairedMoments.from_samples(x[mine], y[mine], torch.arange(25), num_groups=1).total()
        torch.testing.assert_close(together[g], paired_gaussian_kl(alone), rtol=1e-9, atol=1e-9)


def test_softmax_kl_equals_torchs_kl_div_of_softmaxed_latents():
    x, y = torch.randn(2, 8, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.kl_div(y.log_softmax(1), x.softmax(1), reduction="batchmean")
    torch.testing.assert_close(softmax_kl(x, y), expected, **FLOAT64)


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize(("n", "repeats"), [(8, 20000), (64, 5000), (512, 1500)])
def test_kl_to_a_known_gaussian_is_exactly_unbiased(n: int, repeats: int, truth: tuple):
    gap, var_x, var_y = truth
    x = torch.randn(n, repeats, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * var_x**0.5 + gap
    mean, variance, zero = x.mean(0), x.var(0), torch.zeros(repeats, dtype=torch.float64)
    estimates = gaussian_kl_to_known(n, mean, variance, zero, zero + var_y)
    standard_error = float(estimates.std()) / repeats**0.5
    assert abs(float(estimates.mean()) - true_kl(truth)) < 4 * standard_error
    if n == 8 or truth == NULL:
        uncorrected = gaussian_kl(mean, variance, zero, zero + var_y)
        assert float(uncorrected.mean()) - true_kl(truth) > 6 * standard_error  # a bias that this could have seen


def test_kl_to_a_known_gaussian_takes_another_number_for_each_row():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 5, generator=generator).double()
    variance = torch.rand(3, 5, generator=generator).double() + 0.1
    n, zero = torch.tensor([[8.0], [64.0], [512.0]], dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    together = gaussian_kl_to_known(n, mean, variance, zero, zero + 1)
    for row, number in enumerate((8, 64, 512)):
        alone = gaussian_kl_to_known(number, mean[row], variance[row], zero, zero + 1)
        torch.testing.assert_close(together[row], alone, **FLOAT64)


def test_kl_to_a_known_gaussian_reads_nan_where_either_side_does_not_vary():
    one = torch.ones(3, dtype=torch.float64)
    variance, known = torch.tensor([1.0, 0.0, 1.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    assert gaussian_kl_to_known(64, one, variance, one, known).isnan().tolist() == [False, True, True]


def integrated_js(mean_x: float, var_x: float, mean_y: float, var_y: float) -> float:
    p, q = stats.norm(mean_x, var_x**0.5), stats.norm(mean_y, var_y**0.5)

    def integrand(z: float) -> float:
        log_p, log_q = p.logpdf(z), q.logpdf(z)
        mixture = np.logaddexp(log_p, log_q) - np.log(2)
        return 0.5 * (np.exp(log_p) * (log_p - mixture) + np.exp(log_q) * (log_q - mixture))

    edges = np.unique([side.mean() + k * side.std() for side in (p, q) for k in (-12, -5, -2, -1, 0, 1, 2, 5, 12)])
    return sum(integrate.quad(integrand, *edges[k : k + 2])[0] for k in range(len(edges) - 1))


def js(*moments: float) -> float:
    return float(gaussian_js(*(torch.tensor([value], dtype=torch.float64) for value in moments)))


JS_CASES = [
    (0.0, 1.0, 0.0, 1.0),
    (0.0, 1.0, 0.1, 1.0),
    (0.3, 1.0, 0.0, 1.2),
    (0.0, 1.0, 0.0, 4.0),
    (0.0, 1.0, 3.0, 0.5),
    (5.0, 1.0, -5.0, 1.0),
    (0.0, 1.0, 0.0, 20.0),
    (0.0, 1.0, 0.0, 100.0),
    (1.0, 1e-4, 0.0, 1.0),
]


@pytest.mark.parametrize("case", JS_CASES)
def test_js_equals_numerical_integration_both_ways_round(case: tuple[float, ...]):
    expected = integrated_js(*case)
    assert js(*case) == pytest.approx(expected, rel=1e-4, abs=1e-10)
    assert js(*case[2:], *case[:2]) == pytest.approx(expected, rel=1e-4, abs=1e-10)


@pytest.mark.parametrize("case", [*JS_CASES, (0.0, 1.0, 1e3, 1.0), (0.0, 1.0, 0.0, 1e8)])
def test_js_is_at_most_ln_2_and_never_negative(case: tuple[float, ...]):
    assert -1e-12 < js(*case) <= np.log(2) * (1 + 1e-12)


@pytest.mark.parametrize("gap", [12.5, 20, 100, 1e3])
@pytest.mark.parametrize("variance", [1.0, 0.01])
def test_js_of_sets_far_apart_is_ln_2(gap: float, variance: float):
    assert js(0.0, variance, gap, 1.0) == js(gap, 1.0, 0.0, variance) == pytest.approx(np.log(2), rel=1e-7)


def test_js_is_per_direction_and_takes_any_shape():
    generator = torch.Generator().manual_seed(0)
    mean_x, mean_y = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    var_x, var_y = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64) + 0.5
    found = gaussian_js(mean_x, var_x, mean_y, var_y)
    assert found.shape == (3, 4)
    assert float(found[1, 2]) == pytest.approx(js(*(float(x[1, 2]) for x in (mean_x, var_x, mean_y, var_y))))


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.99])
def test_unexplained_variance_is_unbiased(rho):
    # 20,000 directions of 32 pairs each; 4 standard errors.
    x, noise = (
        torch.randn(32, 20_000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (1, 2)
    )
    y = rho * x + (1 - rho**2) ** 0.5 * noise
    moments = PairedMoments.from_samples(x, y, torch.arange(32)).total()
    sample = 1 - moments.cov_xy**2 / (moments.var_x * moments.var_y)
    found = unbiased_unexplained(sample, moments.n)
    assert abs(float(found.mean()) - (1 - rho**2)) < 4 * float(found.std()) / 20_000**0.5
