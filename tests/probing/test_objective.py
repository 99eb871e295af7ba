"""Density, weight and emphasis over log-SNR: against sums over the timesteps, closed forms, and each other."""

import numpy as np
import pytest
import torch

from ldmprobe import EDM, LearnedUncertainty, MinSNR, SNRPower, StarvedBand, TimestepObjective, UniformTimesteps
from ldmprobe.probing.objective import epsilon_weights, objective_record
from tests.diffusion.catalog import SAMPLERS, WEIGHTINGS, schedules
from tests.helpers import FLOAT64

SD = "stable diffusion, ε"


def record_of(weighting, sampler, of=SD):
    return objective_record(TimestepObjective(schedules()[of], weighting, sampler))


def edges_of(curve):
    """Of bins of one width."""
    half = np.diff(curve.log_snr[:2]) / 2
    return np.concatenate([curve.log_snr - half, curve.log_snr[-1:] + half])


@pytest.mark.parametrize("metric", ["timestep_density", "even_density", "training_emphasis"])
def test_densities_are_histograms_to_within_half_a_timestep(metric):
    schedule = schedules()[SD]
    curve = record_of(MinSNR(), UniformTimesteps()).curves[metric]
    snr = schedule.log_snr.exp()
    weight = snr.clamp(max=5) / snr if metric == "training_emphasis" else torch.ones(1000)
    edges = edges_of(curve)
    histogram, _ = np.histogram(schedule.log_snr, edges, weights=weight)
    found = np.cumsum(curve.value * np.diff(edges))
    np.testing.assert_allclose(found, histogram.cumsum() / weight.sum(), rtol=0, atol=0.5 / float(weight.sum()) + 1e-9)


@pytest.mark.parametrize("of", schedules())
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_densities_integrate_to_1_and_emphasis_is_their_product_with_the_weight(sampler, of):
    for weighting in ("plain", "EDM"):
        curves = record_of(WEIGHTINGS[weighting](), SAMPLERS[sampler](), of).curves
        density, weight, emphasis = (curves[name] for name in ("timestep_density", "loss_weight", "training_emphasis"))
        width = np.diff(density.log_snr)
        assert (width > 0).all()  # noisiest first
        np.testing.assert_allclose(width, width[0])
        assert 0.4 < width[0] < 0.6
        assert abs(density.log_snr).max() < 12
        for curve in (density, emphasis):
            assert (curve.value >= 0).all()
            assert (curve.value * width[0]).sum() == pytest.approx(1, rel=1e-12)
        seen = density.value > 0
        assert np.isnan(weight.value[~seen]).all()
        product = density.value[seen] * weight.value[seen]
        np.testing.assert_allclose(emphasis.value[seen], product / product.sum() / width[0], rtol=1e-9)


@pytest.mark.parametrize("of", [SD, "stable diffusion, v", "stable diffusion, x0", "zero terminal, v", "flow"])
def test_min_snr_is_its_formula_whatever_is_predicted(of):
    schedule = schedules()[of]
    objective = TimestepObjective(schedule, MinSNR(5.0), UniformTimesteps(), normalize=False)
    inside = schedule.log_snr.abs() < 12
    snr = schedule.log_snr[inside].exp()
    torch.testing.assert_close(epsilon_weights(objective)[inside], snr.clamp(max=5) / snr, **FLOAT64)


@pytest.mark.parametrize("sampler", ["uniform in log-SNR", "adaptive", "adaptive, stratified"])
def test_the_variational_bound_is_even_wherever_an_importance_sampler_looks(sampler):
    curves = record_of(SNRPower(0), SAMPLERS[sampler]()).curves
    drawn, emphasis = curves["timestep_density"].value, curves["training_emphasis"].value
    np.testing.assert_allclose(emphasis, emphasis[0], rtol=1e-10)
    assert np.allclose(drawn, drawn[0]) == (sampler == "uniform in log-SNR")


def test_a_starved_band_is_seen():
    curves = record_of(SNRPower(0), StarvedBand(300, 600, 0.01)).curves
    even = record_of(SNRPower(0), UniformTimesteps()).curves
    log_snr = schedules()[SD].log_snr
    middle = curves["training_emphasis"].log_snr
    band = (middle > float(log_snr[590])) & (middle < float(log_snr[310]))
    clean = middle > float(log_snr[250])
    share = curves["training_emphasis"].value / even["training_emphasis"].value
    assert band.sum() >= 2
    np.testing.assert_allclose(share[band][1:-1] / share[clean][-1], 0.01, rtol=1e-9)


def test_a_learned_uncertainty_counts_as_it_stands():
    torch.manual_seed(0)
    weighting = LearnedUncertainty()
    torch.nn.init.normal_(weighting.linear.weight)
    schedule = schedules()[SD]
    with torch.no_grad():  # as in a callback of someone's own
        found = epsilon_weights(TimestepObjective(schedule, weighting, UniformTimesteps()))
    assert all(parameter.grad is None for parameter in weighting.parameters())
    base = epsilon_weights(TimestepObjective(schedule, EDM(), UniformTimesteps()))
    torch.testing.assert_close(found, base / weighting.uncertainty(schedule.log_snr).detach().exp(), **FLOAT64)


def test_levels_without_signal_are_left_out_and_counted():
    schedule = schedules()["zero terminal, v"]
    record = record_of(WEIGHTINGS["plain"](), UniformTimesteps(), "zero terminal, v")
    assert all(np.isfinite(curve.value).all() for curve in record.curves.values())
    left_out = int((schedule.log_snr.abs() > 12).sum())
    assert 0 < left_out < 20
    assert record.provenance["draws_left_out"] == pytest.approx(left_out / 1000)


def test_mean_log_snr_of_uniform_timesteps_is_the_schedules():
    record = record_of(SNRPower(0), UniformTimesteps())
    assert record.scalars["timestep_mean_log_snr"] == pytest.approx(float(schedules()[SD].log_snr.mean()), abs=0.01)
    assert record.scalars["emphasis_mean_log_snr"] == pytest.approx(record.scalars["timestep_mean_log_snr"])
