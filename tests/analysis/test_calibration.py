"""The calibration residual on Gaussian data, where the optimal denoiser, and so what is wrong with any other, is known.

ε* = σ (z − α μ)/(α² λ + σ²) leaves MMSE = mean α²λ/(α²λ + σ²), and E ε*² = 1 − MMSE. A denoiser ε* + d,
d a function of z, leaves MSE = MMSE + E d², and R = E d²/MSE if d is linear.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ldmprobe.analysis.calibration import NUM_FOLDS, Calibration, CalibrationSums, calibration, cross_fit_cost
from tests.helpers import FLOAT64

D = 16
LEVELS = [0.05, 0.3, 0.7, 0.95, 0.999]  # α²
VARIANCE = 1 / torch.arange(1, D + 1, dtype=torch.float64) + 0.05
MEAN = torch.linspace(-0.5, 0.5, D, dtype=torch.float64)
Defect = Callable[[Tensor, Tensor], Tensor]  # (ε*, z) → ε_θ

# What is wrong, and its mean square at α².
DEFECTS: dict[str, tuple[Defect, Callable[[float], float]]] = {
    "scale": (lambda best, z: 1.05 * best, lambda a: 0.05**2 * (1 - mmse(a))),
    "shift": (lambda best, z: best + 0.1, lambda a: 0.1**2),
    "leak": (lambda best, z: best + 0.1 * z, lambda a: 0.1**2 * second_moment(a)),
}


def mmse(a: float) -> float:
    return float((a * VARIANCE / (a * VARIANCE + 1 - a)).mean())


def second_moment(a: float) -> float:
    return float((a * (VARIANCE + MEAN**2) + 1 - a).mean())


def share(defect: str, a: float) -> float:
    square = DEFECTS[defect][1](a)
    return square / (mmse(a) + square)


def samples(
    a: float, n: int, seed: int, defect: Defect = lambda best, z: best
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(e, z, ε_θ, fold) of n noised latents."""
    x, noise = torch.randn(2, n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    alpha, sigma = a**0.5, (1 - a) ** 0.5
    z = alpha * (MEAN + VARIANCE.sqrt() * x) + sigma * noise
    best = sigma * (z - alpha * MEAN) / (a * VARIANCE + 1 - a)
    prediction = defect(best, z)
    return noise - prediction, z, prediction, torch.arange(n) % NUM_FOLDS


def measured(a: float, n: int, seed: int, defect: Defect = lambda best, z: best) -> Calibration:
    return calibration(CalibrationSums.from_samples(*samples(a, n, seed, defect)))


@pytest.mark.parametrize("a", LEVELS)
def test_the_exact_denoiser_reads_0_or_less_within_its_interval(a: float):
    found = measured(a, 2048, seed=0)
    assert found.residual - found.half_width <= 0
    assert abs(found.residual) < 0.006  # a few times 8·2/(7·2048) = .0011, what fitting two numbers to nothing costs
    assert found.mse == pytest.approx(mmse(a), rel=0.1)


@pytest.mark.parametrize("a", [0.05, 0.7, 0.999])
def test_the_exact_denoiser_reads_below_0_by_what_the_cross_fit_costs(a: float):
    """Two numbers (ε* is affine in z), fitted on 7/8 of n samples: −2·8/(7n) on average. 4 standard errors over 60
    experiments."""
    n = 256
    residual = np.array([measured(a, n, seed).residual for seed in range(60)])
    standard_error = residual.std(ddof=1) / 60**0.5
    assert standard_error < 0.15 * 16 / (7 * n)
    # n/8 leaves a relative term of order 1/n, and real residuals are heavier-tailed than the noise: 5 % on top.
    assert abs(residual.mean() + 16 / (7 * n)) < 4 * standard_error + 0.05 * 16 / (7 * n)


@pytest.mark.parametrize("a", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_linear_defect_is_found_at_its_true_share(defect: str, a: float):
    """4096 samples; the interval is 2.365 standard errors, so 4 of them are 1.7 half-widths."""
    found, truth = measured(a, 4096, 1, DEFECTS[defect][0]), share(defect, a)
    assert abs(found.residual - truth) < 1.7 * found.half_width
    assert found.half_width < 0.4 * truth + 0.006
    if truth > 0.02:
        assert found.residual - found.half_width > 0
    assert found.excess == pytest.approx(found.residual * found.mse)
    assert found.mse == pytest.approx(mmse(a) + DEFECTS[defect][1](a), rel=0.1)


def test_defects_are_large_enough_to_be_told_from_nothing():
    assert min(share(defect, 0.05) for defect in DEFECTS) > 0.1
    assert sum(share(defect, a) > 0.02 for defect in DEFECTS for a in (0.05, 0.3, 0.7)) >= 6


def test_a_defect_that_is_not_linear_in_z_is_not_seen():
    # z³ − 3 v z is uncorrelated with z, so that a linear correction removes nothing of it.
    a = 0.3
    v = a * VARIANCE + 1 - a

    def hermite(best: Tensor, z: Tensor) -> Tensor:
        centered = z - a**0.5 * MEAN
        return best + 0.05 * (centered**3 - 3 * v * centered) / v.sqrt() ** 3

    e, z, _, fold = samples(a, 4096, 0, hermite)
    best = (1 - a) ** 0.5 * (z - a**0.5 * MEAN) / v
    found = calibration(CalibrationSums.from_samples(e, z, best, fold))
    assert found.mse > mmse(a) + 0.5 * 0.05**2 * 6
    assert abs(found.residual) < found.half_width + 0.005


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("a", [0.3, 0.7])
def test_with_few_samples_the_interval_covers_the_share_less_what_the_cross_fit_costs(defect: str, a: float):
    """R is a *lower* bound: (1 − R)·16/(7n) = .004 below the share. At least 88 of 100, 3.2 binomial standard errors
    (.022) below .95, in each of six cases; the lower end may lie above the share itself in 2.5 %: at most 7 of 100,
    2.9 standard errors (.016)."""
    n, truth = 512, share(defect, a)
    found = [measured(a, n, seed, DEFECTS[defect][0]) for seed in range(100)]
    expected = truth - (1 - truth) * 16 / (7 * n)
    assert sum(abs(each.residual - expected) < each.half_width for each in found) >= 88
    assert sum(each.residual - each.half_width > truth for each in found) <= 7


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("n", [64, 128])
def test_of_few_samples_no_more_is_hidden_than_is_said(defect: str, n: int):
    """The upper end, and what the cross-fit makes R read too low, cover true shares of .01 to .2: at least 93 of 100,
    2.9 binomial standard errors (.016) below .975. R alone is within 1 % of 0 in many of them."""
    found, truth = [measured(0.3, n, seed, DEFECTS[defect][0]) for seed in range(100)], share(defect, 0.3)
    hidden = [each.residual + each.half_width + (1 - each.residual) * cross_fit_cost(n) for each in found]
    assert sum(most >= truth for most in hidden) >= 93


def test_the_interval_is_not_much_wider_than_need_be():
    """Over 60 experiments the mean half-width is 2.365 standard deviations; 25 % is 2.7 times .092, the standard error
    of the standard deviation, 1/√118."""
    found = [measured(0.3, 512, seed, DEFECTS["leak"][0]) for seed in range(60)]
    spread = np.std([each.residual for each in found], ddof=1)
    assert np.mean([each.half_width for each in found]) == pytest.approx(2.365 * spread, rel=0.25)


def test_explained_equals_numpys_least_squares_fold_by_fold():
    e, z, prediction, fold = samples(0.3, 400, 0, DEFECTS["shift"][0])
    e, prediction = e - 0.3 * z**2, prediction + 0.3 * z**2  # not collinear with z, so that the ridge is nothing
    found = CalibrationSums.from_samples(e, z, prediction, fold).explained()
    assert found.shape == (NUM_FOLDS, D)
    for f in range(NUM_FOLDS):
        mine = (fold == f).numpy()
        for d in range(D):
            x = np.stack([np.ones(400), z[:, d].numpy(), prediction[:, d].numpy()], axis=1)
            y = e[:, d].numpy()
            beta = np.linalg.lstsq(x[~mine], y[~mine], rcond=None)[0]
            expected = (y[mine] ** 2).sum() - ((y[mine] - x[mine] @ beta) ** 2).sum()
            assert float(found[f, d]) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_sums_of_chunks_are_the_sums_of_all():
    every = samples(0.3, 500, 0, DEFECTS["scale"][0])
    whole = CalibrationSums.from_samples(*every)
    parts = [CalibrationSums.from_samples(*(value[chunk] for value in every)) for chunk in torch.arange(500).split(77)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    for name in ("n", "gram", "cross", "squares"):
        assert getattr(total, name).dtype == torch.float64
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), **FLOAT64)
    assert calibration(total).residual == pytest.approx(calibration(whole).residual, rel=1e-6)


def test_draws_of_one_image_in_one_fold_keep_the_fit_honest():
    # An error that belongs to the image, not to z: were draws of one image in several folds, it would be "explained".
    n, copies = 64, 8
    e, z, prediction, _ = samples(0.3, n, 0)
    e, z, prediction = (value.repeat(copies, 1) for value in (e, z, prediction))
    image = torch.arange(n * copies) % n
    honest = calibration(CalibrationSums.from_samples(e, z, prediction, image % NUM_FOLDS)).residual
    leaking = calibration(CalibrationSums.from_samples(e, z, prediction, torch.arange(n * copies) // n)).residual
    assert honest < 0 < leaking


@pytest.mark.parametrize("constant", [0.0, 5.0])
def test_a_constant_direction_does_not_break_it(constant: float):
    e, z, prediction, fold = samples(0.3, 1024, 0, DEFECTS["leak"][0])
    without = calibration(CalibrationSums.from_samples(e, z, prediction, fold))
    extra = torch.full((1024, 1), constant, dtype=torch.float64)
    columns = (torch.cat(pair, 1) for pair in ((e, 0 * extra), (z, extra), (prediction, extra)))
    found = calibration(CalibrationSums.from_samples(*columns, fold))
    assert found.residual == pytest.approx(without.residual, rel=1e-9)
    assert found.half_width == pytest.approx(without.half_width, rel=1e-9)
    assert found.mse == pytest.approx(without.mse * D / (D + 1))
    # A constant error along it is explained to the last bit.
    columns = (torch.cat(pair, 1) for pair in ((e, extra + 1), (z, extra), (prediction, extra)))
    explained = CalibrationSums.from_samples(*columns, fold).explained()[:, -1]
    np.testing.assert_allclose(explained.numpy(), 128 * (constant + 1) ** 2, rtol=1e-4)


def test_empty_folds_do_not_break_it():
    e, z, prediction, _ = samples(0.3, 512, 0, DEFECTS["leak"][0])
    found = calibration(CalibrationSums.from_samples(e, z, prediction, torch.arange(512) % 3))
    assert abs(found.residual - share("leak", 0.3)) < 0.1
    assert 0 < found.half_width < 1
