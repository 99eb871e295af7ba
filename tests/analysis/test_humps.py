"""What stands out from both sides, and what of it is sure."""

import numpy as np

from ldmprobe.analysis.humps import humps


def test_a_level_stands_out_by_as_much_over_the_lowest_level_of_either_side():
    value = np.array([0.5, 0.1, 0.4, 0.2, 0.6])
    sure, none = np.zeros(5), np.zeros((5, 5))
    np.testing.assert_allclose(humps(value, sure, none)[1:-1], [-0.4, 0.2, -0.4], atol=1e-12)
    assert np.isneginf(humps(value, sure, none)[[0, -1]]).all()
    # A neighbor that is off to the other side is no witness of more than the distance from 0.
    np.testing.assert_allclose(humps(value - 0.3, sure, none)[2], 0.1, atol=1e-12)
    pairs = np.full((5, 5), 0.05)
    np.testing.assert_allclose(humps(value, sure, pairs)[2], 0.15, atol=1e-12)
    np.testing.assert_allclose(humps(value, sure + 0.35, none)[2], 0.2, atol=1e-12)
    np.testing.assert_allclose(humps(value - 0.3, sure + 0.07, none)[2], 0.03, atol=1e-12)
