"""Bands and runs of levels, and their names."""

import numpy as np
import pytest

from ldmprobe.analysis.bands import bands_of, range_name, runs_of
from ldmprobe.analysis.likelihood import nats_per_error

LOG_SNR = np.array([-5.26, -4.5, -3.0, -0.01, 0.0, 2.99, 3.0, 6.0, 7.07])


def test_bands_are_three_wide_closed_below_and_named_as_far_as_the_grid_reaches():
    bands = bands_of(LOG_SNR)
    assert [(band.low, band.high) for band in bands] == [(-6, -3), (-3, 0), (0, 3), (3, 6), (6, 9)]
    assert [band.name for band in bands] == ["−5.3…−3", "−3…0", "0…+3", "+3…+6", "+6…+7.1"]
    assert [band.inside.sum() for band in bands] == [2, 2, 2, 1, 2]
    assert (sum(band.inside.astype(int) for band in bands) == 1).all()
    np.testing.assert_allclose(sum(band.share for band in bands), 1)
    np.testing.assert_allclose(bands[1].share, [0, 0, 1.495 / 2.245, 1, 0, 0, 0, 0, 0], atol=0.01)


@pytest.mark.parametrize("order", [1, -1])
def test_a_sum_over_a_band_is_its_integral_wherever_levels_lie_beside_its_edges(order):
    """Timesteps lie beside the multiples of .75 that are asked for, so that a band has three to five of them."""
    for seed in range(20):
        off = np.random.default_rng(seed).uniform(-0.03, 0.03, 17)
        levels = (np.arange(-5.25, 7.5, 0.75) + off)[::order]
        density = np.exp(levels / 3)
        for band in bands_of(levels)[1:-1]:
            exact = 3 * (np.exp(band.high / 3) - np.exp(band.low / 3))
            assert band.sum(nats_per_error(levels, 2) * density) == pytest.approx(exact, rel=0.03)


def test_what_is_lost_at_one_level_leaves_other_bands_alone():
    values = np.where(LOG_SNR == -0.01, np.nan, 1.0)
    assert [bool(np.isnan(band.sum(values))) for band in bands_of(LOG_SNR)] == [False, True, False, False, False]
    assert [band.name for band in bands_of(np.array([1.0, 2.0, 3.0]))] == ["+1…+3"]  # none of no width
    assert bands_of(np.array([])) == []
    none, some = bands_of(np.array([-np.inf, 1.0, 2.0]))
    assert (none.name, none.share.tolist(), some.share.tolist()) == ("−inf", [1, 0, 0], [0, 1, 1])
    (alone,) = bands_of(np.array([1.0, 1.0]))
    assert alone.sum(np.array([2.0, 3.0])) == 5.0


@pytest.mark.parametrize(("flagged", "names"), [
    ([], []),
    ([0, 1, 7, 8], ["−5.3…−4.5", "+6…+7.1"]),
    ([2], ["−3"]),
    (range(9), ["−5.3…+7.1"]),
])  # fmt: skip
def test_only_unbroken_runs_of_levels_are_named_as_ranges(flagged, names):
    assert runs_of(np.isin(np.arange(9), list(flagged)), LOG_SNR) == names


def test_what_rounds_to_zero_has_no_sign():
    assert range_name(-0.01, 0.04) == "0"
