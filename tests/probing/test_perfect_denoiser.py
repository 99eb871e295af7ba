"""A perfect denoiser beside a reference of finitely many latents is not accused (scripts/bench_soundness.py perfect)."""

import numpy as np

import known_denoisers as known


def test_a_perfect_denoiser_is_not_accused_at_two_latents_per_dimension():
    """With the eigenvalues of the sample itself: skill down to −.12, all 17 levels accused, KL ÷ ideal down to .06."""
    denoising, sampled = known.perfect_probes("1/f²", (1, 16, 16), 2, seed=0)
    skill, gap, kl = denoising.curves["denoising_skill"], sampled.curves["marginal_gap"], sampled.curves["step_kl"]
    assert (skill.upper >= 0).all()
    assert skill.lower.max() < 0.005
    # The high levels are noise of 512 draws; where many directions count, what is left is the reference's own.
    assert np.abs(skill.value[skill.log_snr > 0]).max() < 0.01
    ratio = kl.value / sampled.curves["step_kl_ideal"].value
    assert np.abs(ratio - 1).max() < 0.05
    ideal = sampled.curves["marginal_gap_ideal"]
    assert (gap.lower <= ideal.upper).all()
    assert (gap.upper >= ideal.lower).all()


def test_below_two_latents_per_dimension_no_linear_filter_is_praised_or_accused():
    """With the cosine basis alone: skill up to +.34."""
    denoising, _ = known.perfect_probes("1/f²", (1, 8, 8), 1, seed=0)
    skill = denoising.curves["denoising_skill"]
    assert (skill.lower <= 0).all()
    assert (skill.upper >= 0).all()
    assert denoising.provenance["linear_optimum_known_to_log_snr"] < 5


def test_directions_without_variance_are_left_out_and_counted():
    """Their KL has no bound where the sampler ends without noise: step_kl_ideal was 5e25 and more."""
    denoising, sampled = known.perfect_probes("half without", (1, 8, 8), 4, seed=0, flow=True)
    assert sampled.provenance["directions_without_variance"] == 32
    ideal, measured = sampled.curves["step_kl_ideal"], sampled.curves["step_kl"]
    for curve in (measured, sampled.curves["marginal_gap"], sampled.curves["variance_ratio/band3"]):
        assert np.isfinite(curve.value).all()
    assert np.nanmax(ideal.value) < 10
    np.testing.assert_allclose(measured.value[-10:], ideal.value[-10:], rtol=0.1)
    assert sampled.curves["marginal_gap"].value.max() < 0.1
    assert (denoising.curves["denoising_skill"].upper >= 0).all()
