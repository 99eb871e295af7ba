"""Power-function averages against quadrature, and against the recursion that keeps them."""

import numpy as np
import pytest
from scipy.integrate import quad

from ldmprobe.analysis.power_averages import LONGEST, Profile, decay_at, gamma_of, mixture
from tests.helpers import refused


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, LONGEST])
def test_a_length_is_the_standard_deviation_of_its_profile(sigma_rel):
    gamma = gamma_of(sigma_rel)
    mean, square = (quad(lambda x, k=k: x**k * (gamma + 1) * x**gamma, 0, 1)[0] for k in (1, 2))
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-7)


def test_the_recursion_weighs_each_update_by_its_part_of_the_profile():
    profile, weights = Profile(300, 0.1), np.zeros(300)
    for update in range(1, 301):
        beta = decay_at(update, gamma_of(0.1))
        weights *= beta
        weights[update - 1] += 1 - beta
    np.testing.assert_allclose(profile.weights, weights, rtol=1e-10, atol=1e-16)


def test_a_mixture_is_the_least_squares_one_and_one_that_is_stored_is_itself():
    stored = [Profile(t, length) for t in (50, 100, 150, 200) for length in (0.05, 0.1)]
    assert mixture(stored[-1], stored).coefficients == pytest.approx([0] * 7 + [1], abs=1e-9)
    found = mixture(Profile(200, 0.07), stored)
    # By brute force: profiles on a fine grid, the sum of coefficients put to 1 by elimination.
    x = (np.arange(200_000) + 0.5) / 1000
    on_grid = np.stack([_density(profile, x) for profile in (*stored, Profile(200, 0.07))])
    basis, target = on_grid[:-2] - on_grid[-2], on_grid[-1] - on_grid[-2]
    expected = np.linalg.lstsq(basis.T, target, rcond=None)[0]
    np.testing.assert_allclose(found.coefficients, [*expected, 1 - expected.sum()], rtol=1e-4, atol=1e-5)
    missed = np.linalg.norm(expected @ basis - target) / np.linalg.norm(on_grid[-1])
    assert found.error == pytest.approx(missed, rel=1e-3)


def _density(profile, x):
    gamma, u = gamma_of(profile.sigma_rel), x / profile.updates
    return np.where(u <= 1, (gamma + 1) * u**gamma / profile.updates, 0.0)


@pytest.mark.parametrize("length", [0.0, 0.3, float("nan")])
def test_a_length_that_no_profile_has_is_refused(length):
    with refused("expected a number above 0 and at most 0.2887"):
        gamma_of(length)
