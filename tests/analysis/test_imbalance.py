"""Bands and Gini, on curves made by hand."""

import numpy as np
import pytest

from ldmprobe.analysis.imbalance import Imbalance, summarize

LOG_SNR = np.arange(-5.625, 6.0, 0.75)  # four levels in each of four bands, none at an edge


def of_bands(residual: list[float], half_width: float = 0.001, mse: float = 0.5) -> Imbalance:
    each = np.repeat(residual, 4)
    return summarize(LOG_SNR, each, np.full(16, half_width), np.full(16, mse), np.full(16, 10.0), num_draws=512)


def test_a_bands_residual_is_its_excess_over_its_loss():
    log_snr, residual = np.array([0.5, 1.5]), np.array([0.4, 0.1])
    (band,) = summarize(
        log_snr, residual, np.array([0.2, 0.05]), np.array([1.0, 3.0]), np.array([10.0, 10.0]), 512
    ).bands
    assert band.residual == pytest.approx((0.4 + 0.3) / 4)
    assert band.lower == pytest.approx(band.residual - (0.2 + 0.15) / 4)
    assert band.upper == pytest.approx(band.residual + (0.2 + 0.15) / 4 + (1 - band.residual) * 24 / 7 / 512)
    assert band.excess_nats == pytest.approx(10 * 0.7)
    assert band.upper_nats == pytest.approx(10 * 4 * band.upper)


@pytest.mark.parametrize("residual", [[0.1, 0.2, 0.3, 0.4], [0.5, 0.0, 0.0, 0.1], [0.1, -0.2, 0.3, -0.1]])
def test_shares_sum_to_one_and_negative_excess_counts_as_none(residual: list[float]):
    found = of_bands(residual)
    share = np.array([band.share for band in found.bands])
    positive = np.maximum(residual, 0)
    np.testing.assert_allclose(share, positive / positive.sum(), atol=1e-12)
    assert share.sum() == pytest.approx(1)
    assert [(band.low, band.high) for band in found.bands] == [(-6, -3), (-3, 0), (0, 3), (3, 6)]
    np.testing.assert_allclose([band.residual for band in found.bands], residual, atol=1e-12)


@pytest.mark.parametrize("residual", [[0.1, 0.2, 0.05, 0.4], [0.2] * 4, *(0.3 * np.eye(4)).tolist()])
def test_gini_is_half_the_relative_mean_difference(residual: list[float]):
    """0 where even, and ¾ where all is in one of four bands."""
    x = np.array(residual)
    assert of_bands(residual).gini == pytest.approx(np.abs(x[:, None] - x).mean() / (2 * x.mean()))


def test_without_excess_shares_and_gini_are_0():
    found = of_bands([-0.01, 0.0, -0.02, -0.1])
    assert [band.share for band in found.bands] == [0, 0, 0, 0]
    assert found.gini == 0
