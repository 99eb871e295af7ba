"""Paired differences against scipy, and against simulated truth: p-values uniform under the null, intervals that cover,
planted gains found."""

import numpy as np
import pytest
from scipy import stats

from ldmprobe.analysis.comparison import gains_by_band, holm, steps_to_reach
from ldmprobe.analysis.intervals import clustered_mean
from tests.helpers import FLOAT64

IMAGES, DRAWS = 40, 128  # three or four draws of each image
CLUSTER = np.arange(DRAWS) % IMAGES
LOG_SNR = np.arange(-6.0, 6.0, 0.75)  # four levels in each of four bands
NATS = np.ones(len(LOG_SNR))


def differences(rng, trials, mean=0.0, of_image=1.0, of_draw=1.0):
    """Paired differences (trials, N): draws of one image share an effect of the image."""
    image = of_image * rng.standard_normal((trials, IMAGES))
    return mean + image[:, CLUSTER] + of_draw * rng.standard_normal((trials, DRAWS))


# --- one mean --------------------------------------------------------------------------------------------------------


def test_with_a_draw_an_image_it_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    first, other = rng.gamma(2.0, size=(2, 3, 50))
    found, expected = clustered_mean(first - other, np.arange(50)), stats.ttest_rel(first, other, axis=-1)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(found.p_value, expected.pvalue, **FLOAT64)
    np.testing.assert_allclose(found.value - found.half_width, interval.low, **FLOAT64)
    np.testing.assert_allclose(found.value + found.half_width, interval.high, **FLOAT64)


def test_with_as_many_draws_of_each_image_it_is_the_t_test_of_the_images_means():
    values = differences(np.random.default_rng(1), 5)[:, : 3 * IMAGES]
    means = values.reshape(5, 3, IMAGES).mean(1)
    found, expected = clustered_mean(values, CLUSTER[: 3 * IMAGES]), stats.ttest_1samp(means, 0, axis=-1)
    np.testing.assert_allclose(found.p_value, expected.pvalue, **FLOAT64)
    np.testing.assert_allclose(found.value, means.mean(-1), **FLOAT64)


@pytest.mark.parametrize("of_image", [0.0, 1.0, 3.0])
def test_under_the_null_p_values_are_uniform_and_intervals_cover(of_image):
    trials = 4000
    found = clustered_mean(differences(np.random.default_rng(2), trials, 0.3, of_image), CLUSTER)
    covered = np.mean(np.abs(found.value - 0.3) <= found.half_width)
    assert abs(covered - 0.95) < 3.5 * np.sqrt(0.95 * 0.05 / trials)  # standard error .0034
    null = clustered_mean(differences(np.random.default_rng(3), trials, 0.0, of_image), CLUSTER)
    assert stats.kstest(null.p_value, "uniform").pvalue > 0.01


def test_skewed_errors_are_covered_nearly_as_often():
    rng = np.random.default_rng(4)
    image = rng.exponential(size=(4000, IMAGES)) - 1
    found = clustered_mean(image[:, CLUSTER] + rng.standard_normal((4000, DRAWS)), CLUSTER)
    assert 0.92 < np.mean(np.abs(found.value) <= found.half_width) < 0.97


def test_draws_of_one_image_taken_for_independent_would_find_what_is_not_there():
    values = differences(np.random.default_rng(5), 2000)
    assert np.mean(clustered_mean(values, np.arange(DRAWS)).p_value < 0.05) > 0.15
    assert np.mean(clustered_mean(values, CLUSTER).p_value < 0.05) < 0.07


def test_the_same_network_twice_does_not_differ_and_a_constant_difference_does():
    same, apart = clustered_mean(np.zeros(DRAWS), CLUSTER), clustered_mean(np.full(DRAWS, 0.5), CLUSTER)
    assert (same.value, same.half_width, same.p_value) == (0, 0, 1)
    assert (apart.value, apart.half_width, apart.p_value) == (0.5, 0, 0)


def test_one_image_gives_no_interval():
    with pytest.raises(ValueError, match="got draws of 1 cluster; expected at least 2"):
        clustered_mean(np.ones(5), np.zeros(5, dtype=int))


# --- several at once -------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # Smallest first: 4 · .005, 3 · .01, 2 · .03, then 1 · .04, which may not fall below the one before.
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02], **FLOAT64)
    np.testing.assert_allclose(holm(np.array([0.6, 0.9])), [1.0, 1.0], **FLOAT64)
    np.testing.assert_allclose(holm(np.array([0.02, np.nan, 0.5])), [0.04, np.nan, 0.5], **FLOAT64)
    assert holm(np.array([])).shape == (0,)


def errors(rng, trials, others):
    """Squared errors (trials, 1 + others, L, N) of networks that are equally good; levels, images and networks have
    effects."""
    level = rng.gamma(4.0, size=(trials, 1, len(LOG_SNR), IMAGES))
    network = 0.5 * rng.standard_normal((trials, 1 + others, len(LOG_SNR), IMAGES))
    noise = rng.standard_normal((trials, 1 + others, len(LOG_SNR), DRAWS))
    return (level + network)[..., CLUSTER] + noise


def test_among_all_bands_of_all_runs_a_false_one_is_named_once_in_twenty():
    trials, named = 600, 0
    for first, *others in errors(np.random.default_rng(6), trials, 3):
        found = gains_by_band(LOG_SNR, first, others, CLUSTER, NATS)
        named += any(band.significant for bands in found for band in bands[:-1])
    assert named / trials < 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)
    assert named > 0.01 * trials  # a test that never finds anything would be no test


def test_a_planted_gain_is_found_in_its_band_with_its_sign_and_size():
    (first, other), *_ = errors(np.random.default_rng(7), 1, 1)
    planted = np.where((LOG_SNR >= -3) & (LOG_SNR < 0), 0.9, 0.0)
    found = gains_by_band(LOG_SNR, first, [other - planted[:, None], other + planted[:, None]], CLUSTER, 2 * NATS)
    for (*bands, total), sign in zip(found, (1, -1), strict=True):
        assert [(band.low, band.high) for band in bands] == [(-6, -3), (-3, 0), (0, 3), (3, 6)]
        assert [band.name for band in (*bands, total)] == ["−6…−3", "−3…0", "0…+3", "+3…+5.2", "all"]
        assert [band.significant for band in bands] == [False, True, False, False]
        assert abs(bands[1].gain - sign * 2.0 * 4 * 0.9) < 1.5 * bands[1].half_width
        assert np.sign(bands[1].gain) == sign
        assert total.everywhere
        assert total.gain == pytest.approx(sum(band.gain for band in bands))


def test_a_network_that_has_diverged_is_not_finite_and_spoils_no_other():
    (first, other), *_ = errors(np.random.default_rng(9), 1, 1)
    lost, alone = gains_by_band(LOG_SNR, first, [np.full_like(other, np.nan), other], CLUSTER, NATS)
    assert all(np.isnan(band.gain) and not band.significant for band in lost)
    assert alone == gains_by_band(LOG_SNR, first, [other], CLUSTER, NATS)[0]


# --- steps -----------------------------------------------------------------------------------------------------------

STEPS = np.array([0, 100, 200, 400])


def test_steps_are_interpolated_between_probes():
    found = steps_to_reach(STEPS, np.array([8.0, 4.0, -4.0, -6.0]), np.array([1.0, 1.0, 2.0, 1.0]))
    assert found.steps == 150
    assert found.lower == pytest.approx(100 + 100 * 3 / 9)  # 8−1, 4−1, −4−2
    assert found.upper == pytest.approx(100 + 100 * 5 / 7)  # 8+1, 4+1, −4+2


def test_what_is_not_reached_is_nan_and_so_is_what_is_not_yet_sure():
    never = steps_to_reach(STEPS, np.array([8.0, 4.0, 3.0, 2.0]), np.ones(4))
    assert np.isnan([never.steps, never.lower, never.upper]).all()
    unsure = steps_to_reach(STEPS, np.array([8.0, 4.0, 1.0, -0.5]), np.ones(4))
    assert (unsure.lower, unsure.steps) == (200, pytest.approx(200 + 200 / 1.5))
    assert np.isnan(unsure.upper)


def test_the_first_time_counts_and_a_diverged_probe_does_not():
    assert steps_to_reach(STEPS, np.array([-1.0, 2.0, -3.0, 1.0]), np.zeros(4)).steps == 0
    assert steps_to_reach(STEPS, np.array([5.0, np.nan, -3.0, 1.0]), np.zeros(4)).steps == 200


def test_the_interval_of_the_steps_covers_their_truth():
    # Bounds of 9, 5, 3, 2 nats above the first run's last; the truth crosses a target of 4 at step 150.
    rng, trials, covered = np.random.default_rng(10), 1000, 0
    for _ in range(trials):
        image = rng.standard_normal((len(STEPS), IMAGES))[:, CLUSTER]
        per_draw = np.array([9.0, 5.0, 3.0, 2.0])[:, None] - 4.0 + image + rng.standard_normal((len(STEPS), DRAWS))
        excess = clustered_mean(per_draw, CLUSTER)
        found = steps_to_reach(STEPS, excess.value, excess.half_width)
        covered += found.lower <= 150 <= found.upper
    assert covered / trials > 0.93
