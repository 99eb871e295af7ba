"""Bands, Gini and the sentence, on curves made by hand."""

import numpy as np
import pytest

from ldmprobe.analysis.imbalance import BAND_WIDTH, Imbalance, summarise

LOG_SNR = np.arange(-6.0, 6.0, 0.75)  # four levels in each of four bands


def of_bands(residual: list[float], half_width: float = 0.001, mse: float = 0.5) -> Imbalance:
    each = np.repeat(residual, 4)
    return summarise(LOG_SNR, each, np.full(16, half_width), np.full(16, mse), nats_per_mse=10.0)


def test_bands_are_three_wide_and_closed_below():
    log_snr = np.array([-3.1, -3.0, -0.01, 0.0, 2.99, 3.0])
    found = summarise(log_snr, np.arange(6) / 100, np.zeros(6), np.ones(6), 1.0).bands
    assert [(band.low, band.high) for band in found] == [(-6, -3), (-3, 0), (0, 3), (3, 6)]
    np.testing.assert_allclose([band.residual for band in found], [0.0, 0.015, 0.035, 0.05], atol=1e-12)
    assert [band.name for band in found] == ["−6…−3", "−3…+0", "+0…+3", "+3…+6"]
    assert all(band.high - band.low == BAND_WIDTH for band in found)


def test_a_bands_residual_is_its_excess_over_its_loss():
    log_snr, residual = np.array([0.5, 1.5]), np.array([0.4, 0.1])
    (band,) = summarise(log_snr, residual, np.array([0.2, 0.05]), np.array([1.0, 3.0]), 10.0).bands
    assert band.residual == pytest.approx((0.4 + 0.3) / 4)
    assert band.lower == pytest.approx(band.residual - (0.2 + 0.15) / 4)
    assert band.excess_nats == pytest.approx(10 * 0.7)


@pytest.mark.parametrize("residual", [[0.1, 0.2, 0.3, 0.4], [0.5, 0.0, 0.0, 0.1], [0.1, -0.2, 0.3, -0.1]])
def test_shares_sum_to_one_and_negative_excess_counts_as_none(residual: list[float]):
    found = of_bands(residual)
    share = np.array([band.share for band in found.bands])
    positive = np.maximum(residual, 0)
    np.testing.assert_allclose(share, positive / positive.sum(), atol=1e-12)
    assert share.sum() == pytest.approx(1)


def test_gini_is_0_where_even_and_as_large_as_it_gets_where_all_in_one_band():
    assert of_bands([0.2] * 4).gini == pytest.approx(0)
    for k in range(4):
        assert of_bands([0.3 * (band == k) for band in range(4)]).gini == pytest.approx(3 / 4)


def test_gini_is_half_the_relative_mean_difference():
    x = np.array([0.1, 0.2, 0.05, 0.4])
    expected = np.abs(x[:, None] - x).mean() / (2 * x.mean())
    assert of_bands(x.tolist()).gini == pytest.approx(expected)


def test_without_excess_shares_and_gini_are_0():
    found = of_bands([-0.01, 0.0, -0.02, -0.1])
    assert [band.share for band in found.bands] == [0, 0, 0, 0]
    assert found.gini == 0


def test_sentence_names_the_bands_with_most_to_gain_in_nats_first():
    expected = (
        "log-SNR −3…+0 still recovers 30% of its loss (6.0 nats), −6…−3 still recovers 5% of its loss (1.0 nats); "
    )
    assert of_bands([0.05, 0.3, 0.004, -0.01]).sentence == expected + "the rest at most 0%."


def test_sentence_names_at_most_three_bands():
    sentence = of_bands([0.1, 0.2, 0.3, 0.4]).sentence
    assert sentence.startswith("log-SNR +3…+6 still recovers 40% of its loss (8.0 nats), +0…+3 ")
    assert sentence.count("still recovers") == 3
    assert sentence.endswith("; the rest at most 10%.")


def test_sentence_has_no_rest_where_there_is_nothing_in_it():
    assert of_bands([0.3, -0.1, -0.1, 0.0]).sentence == "log-SNR −6…−3 still recovers 30% of its loss (6.0 nats)."


@pytest.mark.parametrize(("residual", "half_width"), [(0.009, 0.0), (0.3, 0.295), (-0.1, 0.01)])
def test_sentence_says_so_where_no_band_is_surely_above_one_percent(residual: float, half_width: float):
    sentence = of_bands([residual] * 4, half_width).sentence
    assert sentence.startswith("No band of noise levels still has a measurable linear excess")
    assert "within 1 %" in sentence
