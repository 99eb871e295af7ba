"""Bands and runs of levels, and their names."""

import numpy as np
import pytest

from ldmprobe.analysis.bands import bands_of, range_name, runs_of

LOG_SNR = np.array([-5.26, -4.5, -3.0, -0.01, 0.0, 2.99, 3.0, 6.0, 7.07])


def test_bands_are_three_wide_closed_below_and_named_as_far_as_the_grid_reaches():
    bands = bands_of(LOG_SNR)
    assert [(band.low, band.high) for band in bands] == [(-6, -3), (-3, 0), (0, 3), (3, 6), (6, 9)]
    assert [band.name for band in bands] == ["−5.3…−3", "−3…0", "0…+3", "+3…+6", "+6…+7.1"]
    assert [band.inside.sum() for band in bands] == [2, 2, 2, 1, 2]
    assert (sum(band.inside.astype(int) for band in bands) == 1).all()


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
