"""Controllers: what each wants, on levels with known answers."""

import numpy as np
import pytest

from ldmprobe import Controller, HeldOutProgress, Measured
from ldmprobe.analysis.balancing import bounded, moved
from tests.helpers import refused

LOG_SNR = np.array([-4.0, -2.0, 0.0, 2.0, 4.0])


def measured(**known: np.ndarray) -> Measured:
    names = ("mse", "progress", "linear_mmse")
    return Measured(LOG_SNR, **{name: np.ones(5) for name in names} | known)


def shares(values: np.ndarray) -> np.ndarray:
    return values / values.sum()


def allocation(controller: Controller, effect: np.ndarray) -> np.ndarray:
    """Where following ``controller`` ends on levels that learn by themselves, each with an error of 1/draws."""
    draws, p = np.full(5, 10.0), np.full(5, 0.2)
    for _ in range(4000):
        error = effect / draws
        draws = draws + 0.01 * draws.sum() * p
        p = 0.9 * p + 0.1 * shares(controller.density(measured(progress=error - effect / draws)))
    return p


def test_following_progress_ends_at_the_best_allocation():
    """Σ c/n at a fixed Σ n is least where n ∝ √c."""
    effect = np.array([1.0, 4.0, 9.0, 16.0, 25.0])
    np.testing.assert_allclose(allocation(HeldOutProgress(sample_share=0), effect), shares(np.sqrt(effect)), rtol=0.02)


def test_one_share_is_for_the_bound_and_one_for_the_samples():
    progress = np.array([1.0, 2.0, 3.0, 2.0, 1.0])
    for_samples = shares(progress / (1 + np.exp(LOG_SNR)))
    for share in (0.0, 0.3, 1.0):
        found = HeldOutProgress(share).density(measured(progress=progress))
        np.testing.assert_allclose(found, (1 - share) * shares(progress) + share * for_samples)


def test_without_progress_there_is_no_opinion():
    assert not HeldOutProgress().density(measured(progress=np.zeros(5))).any()


def test_bounds():
    np.testing.assert_allclose(bounded(np.array([0.0, 0.5, 1.0, 1.5, 2.0]), 4), [0.25, 0.5, 1.0, 1.5, 2.0])
    assert bounded(np.array([0.0, 0.0, 0.0, 0.0, 9.0]), 4).tolist() == [0.25, 0.25, 0.25, 0.25, 4.0]
    for nothing in (np.zeros(5), np.array([1.0, np.nan, 1.0, 1.0, 1.0])):
        assert bounded(nothing, 4).tolist() == [1.0] * 5


def test_moved_is_the_share_of_draws():
    assert moved(np.array([1.0, 1.0]), np.array([2.0, 2.0])) == 0
    assert moved(np.array([3.0, 1.0]), np.array([1.0, 3.0])) == pytest.approx(0.5)


@pytest.mark.parametrize(("share", "exponent"), [(-0.1, 1.0), (1.1, 1.0), (0.5, 0.0), (0.5, 1.5)])
def test_numbers_out_of_range_are_errors(share: float, exponent: float):
    with refused("sample_share"):
        HeldOutProgress(share, exponent)
