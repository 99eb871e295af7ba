"""What is said of a probe, on levels made by hand: who is accused, of what, in which order, and who is not."""

from dataclasses import replace

import numpy as np
import pytest

from ldmprobe.analysis.bands import bands_of
from ldmprobe.analysis.faults import Levels, find_faults, in_words
from ldmprobe.analysis.imbalance import summarize
from ldmprobe.analysis.likelihood import nats_per_error

LOG_SNR = np.array([-5.26, -4.5, -3.7, -2.9, -2.2, -1.5, -0.7, 0.0, 0.8, 1.5, 2.3, 3.0, 3.7, 4.5, 5.3, 6.0, 7.07])
L = len(LOG_SNR)
MSE = 1 / (1 + np.exp(-LOG_SNR))
NATS = nats_per_error(LOG_SNR, 256)
BOUND = float(NATS @ MSE)
PERFECT = Levels(
    LOG_SNR, MSE, NATS, MSE, np.zeros(L), np.full(L, 0.01), np.ones(L), np.full(L, 0.01), 1 - MSE, np.full(L, 0.005), np.full(L, 0.01), 512
)  # fmt: skip


def said(levels: Levels = PERFECT, residual: np.ndarray | float = -0.005, half_width: float = 0.004) -> tuple[str, str]:
    spread = np.broadcast_to(np.asarray(residual, dtype=float), (L,))
    bands = summarize(LOG_SNR, spread, np.full(L, half_width), levels.mse, NATS, num_draws=512).bands
    return in_words(levels, bands)


def at(low: float, high: float) -> np.ndarray:
    return (low <= LOG_SNR) & (high >= LOG_SNR)


def worse_at(*levels: int, by: float = 0.2) -> Levels:
    """A tenth or so above the linear denoiser's error at the levels numbered so."""
    mse = MSE * np.where(np.isin(np.arange(L), levels), 1 + by, 1)
    return replace(PERFECT, mse=mse, skill=1 - mse / MSE)


def test_a_perfect_denoiser_is_not_accused_and_what_could_be_hidden_is_the_intervals_upper_end():
    headline, remarks = said()
    assert headline.startswith("No noise level has a measurable fault")
    largest = -0.005 + 0.004 + 1.005 * 24 / 7 / 512
    assert f"larger than {largest:.1%} of a band's loss ({largest * BOUND:.1f} nats in all)" in remarks
    assert "calibrated" not in headline + remarks
    assert "larger than 5.9% of a band's loss" in said(half_width=0.057)[1]  # of fewer draws


def test_only_levels_that_are_worse_than_linear_are_named_as_unbroken_runs():
    headline, _ = said(worse_at(0, 1, 15, 16))
    assert headline.startswith("Worse than a linear denoiser at log-SNR −5.3…−4.5 and +6…+7.1: ")
    assert "every noise level" in said(worse_at(*range(L)))[0]


def test_one_level_in_seventeen_beyond_its_own_interval_is_chance():
    almost, surely = (replace(PERFECT, gain=np.where(np.arange(L) == 8, 1 + off, 1.0)) for off in (0.0115, 0.051))
    assert said(almost) == said()
    assert said(surely)[0].startswith("Predictions are too small at log-SNR +0.8, gain 1.05: ")
    for name, off, others in (("offset", 0.0115, 0.005), ("skill", -0.0115, 0.0)):
        assert said(replace(PERFECT, **{name: np.where(np.arange(L) == 8, off, others)})) == said()


def test_few_images_take_more_to_convince():
    gain = np.where(at(-1, 1), 0.97, 1.0)
    assert said(replace(PERFECT, gain=gain))[0].startswith("Predictions are too large")
    assert said(replace(PERFECT, gain=gain, num_images=4)) == said(replace(PERFECT, num_images=4))


def test_a_gain_or_a_shift_is_told_of_though_it_costs_next_to_nothing():
    headline, _ = said(replace(PERFECT, gain=np.where(at(-1, 1), 0.952, 1.0)))
    nats = float((NATS * 0.048**2 * (1 - MSE))[at(-1, 1)].sum())
    assert nats < 0.005 * BOUND
    assert headline.startswith(
        f"Predictions are too large at log-SNR −0.7…+0.8, gain 0.95: {nats:.2f} of the held-out bound's "
    )
    headline, _ = said(replace(PERFECT, offset=np.where(at(-1, 1), 0.05, 0.005)))
    assert headline.startswith("Predictions are shifted at log-SNR −0.7…+0.8, by 0.05 of the noise: ")


def test_the_heaviest_is_the_headline_and_what_weighs_nothing_comes_last_without_its_share():
    residual = np.where(at(-6, -3.5), 0.99, np.where(at(3, 8), 0.05, -0.005))
    headline, remarks = said(replace(PERFECT, gain=np.where(at(-1, 1), 0.952, 1.0)), residual)
    nats = sum(float(band.sum(NATS * MSE * residual)) for band in bands_of(LOG_SNR) if band.low >= 3)
    assert headline.startswith("A linear correction would still remove 5% of the loss at log-SNR +3…+6 and 5% ")
    assert f": {nats:.1f} of the held-out bound's {BOUND:.0f} nats" in headline
    gain, light = remarks.index("Predictions are too large"), remarks.index("Measurable, but next to nothing")
    assert gain < light < remarks.index("a linear correction would remove something at log-SNR −5.3…−3 (")
    assert "99%" not in remarks
    assert "hidden elsewhere" in remarks


def test_a_band_that_weighs_much_is_named_however_much_heavier_another_is():
    residual = np.where(at(2, 8), 0.6, np.where(at(-1, 1.6), 0.3, -0.005))
    medium = 0.3 * float((NATS * MSE)[at(-1, 1.6)].sum())
    headline, remarks = said(residual=residual)
    assert 0.05 * BOUND < medium < 0.2 * 0.6 * float((NATS * MSE)[at(2, 8)].sum())
    assert "of the loss at log-SNR 0…+3" in headline
    assert "next to nothing" not in headline + remarks


@pytest.mark.parametrize(("lost", "where"), [([3, 4], "log-SNR −2.9…−2.2"), (range(L), "every noise level")])
def test_what_is_not_finite_is_named(lost, where):
    gone = replace(PERFECT, mse=np.where(np.isin(np.arange(L), list(lost)), np.nan, MSE))
    with np.errstate(invalid="ignore"):
        headline, remarks = said(gone)
    assert headline.startswith(f"Predictions have NaN or Inf in them at {where}: ")
    assert remarks == ""


def test_the_cleanest_level_is_of_the_last_band_also_at_its_edge():
    kept = LOG_SNR <= 6
    names = ("log_snr", "mse", "nats", "linear_mse", "skill", "skill_width", "gain", "gain_width", "square")
    cut = {name: getattr(PERFECT, name)[kept] for name in (*names, "offset", "offset_width")}
    levels = replace(PERFECT, **cut)
    residual = 0.2 * at(3, 6)[kept]
    bands = summarize(levels.log_snr, residual, np.full(kept.sum(), 0.004), levels.mse, levels.nats, 512).bands
    (fault,), _ = find_faults(levels, bands)
    assert fault.levels[-1]
