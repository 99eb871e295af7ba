"""MarginalGap, OneStepError, X0Drift and StepKL's bands and floor, on Gaussian data and on trajectories by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ldmprobe.analysis.ideal import IdealPath, ideal_path
from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.diffusion.samplers import DDIM
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses import Analysis, Findings, MarginalGap, OneStepError, StepKL, Trajectory, X0Drift
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from tests.helpers import FLOAT64, gaussian_model, refused
from tests.probing.gaussian import draw, exact_reference, faulty

NUM_SAMPLES, NUM_STEPS = 1024, 50


def probed(model: DiffusionModel, analyses: Sequence[Analysis], num_latents: int = 512) -> ProbeRecord:
    perfect = gaussian_model()
    held_out = HeldOut(draw(perfect, num_latents, seed=5), {})
    return probe_sampling(
        model, exact_reference(perfect), Sampling(NUM_SAMPLES, NUM_STEPS, seed=1), analyses=analyses, held_out=held_out
    )


@pytest.fixture(scope="module")
def perfect() -> ProbeRecord:
    return probed(gaussian_model(), [StepKL(), MarginalGap(), OneStepError(512), X0Drift()])


@pytest.fixture(scope="module")
def corrupted() -> ProbeRecord:
    """ε is 20 % too large at timesteps 300 to 599."""
    return probed(faulty(300, 600, 1.2), [StepKL(), MarginalGap(), OneStepError(512), X0Drift()])


def in_band(curve: Curve) -> np.ndarray:
    return (curve.timestep >= 300) & (curve.timestep < 600)


def closed_form() -> tuple[Tensor, Tensor, SamplingGrid, IdealPath]:
    """Mean (D,), variance (D,), grid and ideal path of the perfect model."""
    model = gaussian_model()
    mean, variance = model.network.mean.detach().flatten(), model.network.variance.detach().flatten()
    grid = model.schedule.native_grid(NUM_STEPS)
    return mean, variance, grid, ideal_path(mean, variance, DDIM().program(grid), grid)


def by_hand(analysis: Analysis, pairs: Sequence[tuple[Tensor, Tensor]], x0: Sequence[Tensor] = ()) -> Findings:
    """What an analysis finds on latents before and after each step."""
    model, n = gaussian_model(), len(pairs[0][0])
    grid = model.schedule.native_grid(len(pairs))
    analysis.begin(
        Trajectory(model, Sampling(n, grid.num_steps), grid, torch.arange(n), exact_reference(model), Ranks())
    )
    for k, (before, after) in enumerate(pairs):
        clean = x0[k] if x0 else after
        analysis.update(SamplingStep(k, float(grid.timesteps[k]), before, after, clean, clean))
    return analysis.finish()


def test_ideal_marginal_gap_is_the_under_dispersion_of_long_steps(perfect: ProbeRecord):
    """Per direction KL(m² v_t … ‖ v_s) by torch.distributions, from the path's recursion; longer steps cost more."""
    mean, variance, grid, _ = closed_form()
    path_mean, path_std, expected = torch.zeros(32).double(), torch.ones(32).double(), []
    for a_t, b_t, a_s, b_s in zip(grid.alpha_t, grid.sigma_t, grid.alpha_s, grid.sigma_s, strict=True):
        epsilon_slope = b_t / (a_t**2 * variance + b_t**2)
        slope = (a_s - a_s * b_t * epsilon_slope) / a_t + b_s * epsilon_slope
        path_mean, path_std = a_s * mean + slope * (path_mean - a_t * mean), slope.abs() * path_std
        forward = Normal(a_s * mean, (a_s**2 * variance + b_s**2).sqrt())
        expected.append(float(kl_divergence(Normal(path_mean, path_std), forward).mean()))
    np.testing.assert_allclose(perfect.curves["marginal_gap_ideal"].value, expected, rtol=1e-6)
    model = gaussian_model()
    few = probe_sampling(model, exact_reference(model), Sampling(8, 5), [MarginalGap()]).curves["marginal_gap_ideal"]
    assert few.value[-1] > 2 * expected[-1]


def test_marginal_gap_rises_from_a_corrupted_band_on_and_not_before(perfect: ProbeRecord, corrupted: ProbeRecord):
    found, before = corrupted.curves["marginal_gap"], perfect.curves["marginal_gap"]
    band = in_band(found)
    first = int(np.argmax(band))
    np.testing.assert_array_equal(found.value[:first], before.value[:first])
    assert found.value[band][-1] > 3 * before.upper[band][-1]
    assert (found.lower[band][3:] > before.upper[band][3:]).all()
    np.testing.assert_array_equal(
        corrupted.curves["marginal_gap_ideal"].value, perfect.curves["marginal_gap_ideal"].value
    )


def test_one_step_error_is_the_paired_excess_epsilon_error_times_what_a_step_makes_of_it(corrupted: ProbeRecord):
    model, network = gaussian_model(), faulty(300, 600, 1.2).network
    grid, z0 = model.schedule.native_grid(NUM_STEPS), draw(model, 512, seed=5)
    noise = sample_noise(range(512), (2, 4, 4), seed=0, stream=3).double()
    expected = []
    for k, timestep in enumerate(grid.timesteps.tolist()):
        t = torch.full((512,), timestep)
        z_t = model.schedule.add_noise(z0, noise, t)
        with torch.no_grad():
            mse, optimum = ((one(z_t, t, {}) - noise).pow(2).mean() for one in (network, model.network))
        factor = (grid.sigma_s[k] - grid.alpha_s[k] * grid.sigma_t[k] / grid.alpha_t[k]) ** 2
        expected.append(float(factor * (mse - optimum)))
    np.testing.assert_allclose(corrupted.curves["one_step_excess"].value, expected, rtol=1e-3, atol=1e-6)


def test_one_step_error_rises_in_a_corrupted_band_and_nowhere_else(perfect: ProbeRecord, corrupted: ProbeRecord):
    found, before = corrupted.curves["one_step_excess"], perfect.curves["one_step_excess"]
    band = in_band(found)
    assert (found.lower[band] > np.maximum(before.upper[band], 0)).all()
    np.testing.assert_array_equal(found.value[~band], before.value[~band])


def test_one_step_error_takes_as_many_latents_as_there_are():
    few = probed(gaussian_model(), [OneStepError(100)], num_latents=20).curves["one_step_excess"]
    same = probed(gaussian_model(), [OneStepError(20)], num_latents=20).curves["one_step_excess"]
    np.testing.assert_array_equal(few.value, same.value)


def test_analyses_need_real_latents_and_a_few_of_them():
    model = gaussian_model()
    with refused("MarginalGap needs real latents"):
        probe_sampling(model, None, Sampling(8, 2), analyses=[MarginalGap()])
    with refused("OneStepError needs held-out latents"):
        probe_sampling(model, exact_reference(model), Sampling(8, 2), analyses=[OneStepError()])
    with refused("OneStepError needs"):
        probe_sampling(model, None, Sampling(8, 2), analyses=[OneStepError()], held_out=HeldOut(draw(model, 16), {}))
    with refused("num_latents 7; expected at least 8"):
        OneStepError(7)


def test_x0_drift_is_the_mean_squared_change_between_steps():
    x0 = list(torch.randn(4, 10, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x0[2] = x0[1] + 0.5
    drift = by_hand(X0Drift(), [(x, x) for x in x0], x0).curves["x0_drift"]
    assert np.isnan(drift.value[0])
    assert drift.value[2] == pytest.approx(0.25)
    for k in (1, 3):
        assert drift.value[k] == pytest.approx(float(((x0[k] - x0[k - 1]) ** 2).mean()), rel=1e-12)
    x = x0[0]
    assert by_hand(X0Drift(), [(x, 2 * x), (2 * x, 3 * x)], [x, x]).curves["x0_drift"].value[1] == 0


def test_step_kl_ratio_of_a_perfect_model_is_1_in_every_band(perfect: ProbeRecord):
    """A deterministic linear step has the same KL in every sample of one direction but for the mean and variance of
    z_T, which 1024 samples know to √(2/1024) = 4 %; no more than 3 of that for a band of 8 directions (here 1.6 %
    each)."""
    for k in range(4):
        ratio = perfect.curves[f"step_kl_ratio/band{k}"].value
        assert np.abs(np.median(ratio) - 1) < 0.1
        assert (np.abs(ratio - 1) < 0.2).mean() >= 0.9


def test_step_kl_bands_average_to_the_whole(perfect: ProbeRecord):
    ideal = closed_form()[-1].step_kl()
    parts = [
        perfect.curves[f"step_kl_ratio/band{k}"].value * ideal[:, 8 * k : 8 * k + 8].mean(1).numpy() for k in range(4)
    ]
    np.testing.assert_allclose(np.mean(parts, 0), perfect.curves["step_kl"].value, rtol=1e-9, atol=1e-15)


def test_variance_ratio_is_that_of_the_path_to_the_forward_process(perfect: ProbeRecord):
    """A mean over 8 directions of s²/σ², whose standard error is √(2/1023/8) = .016."""
    *_, ideal = closed_form()
    expected = ideal.var_s / ideal.forward_var_s
    for k in range(4):
        truth = expected[:, 8 * k : 8 * k + 8].mean(1).numpy()
        assert (np.abs(perfect.curves[f"variance_ratio/band{k}"].value - truth) < 4 * 0.016 * truth).all()
        np.testing.assert_allclose(perfect.curves[f"variance_ratio_ideal/band{k}"].value, truth, **FLOAT64)
    lowest = min(perfect.curves[f"variance_ratio_ideal/band{k}"].value[-1] for k in range(4))
    assert lowest < 0.95  # a perfect sampler held against 1 would be accused


def test_variance_ratio_shows_samples_that_spread_too_little(perfect: ProbeRecord, corrupted: ProbeRecord):
    """An ε that is too large takes away too much: the variance falls in the band and not before it."""
    found, before = (record.curves["variance_ratio/band3"] for record in (corrupted, perfect))
    band = in_band(found)
    first = int(np.argmax(band))
    np.testing.assert_array_equal(found.value[:first], before.value[:first])
    assert found.value[band][-1] < before.value[band][-1] - 4 * 0.016


def test_number_of_bands_is_as_asked_for():
    model = gaussian_model()
    curves = probe_sampling(model, exact_reference(model), Sampling(64, 3), analyses=[StepKL(num_bands=2)]).curves
    assert {name for name in curves if "/band" in name} == {
        f"{name}/band{k}" for name in ("step_kl_ratio", "variance_ratio", "variance_ratio_ideal") for k in (0, 1)
    }
    with refused("num_bands 0; expected at least 1"):
        StepKL(num_bands=0)


def pairs(n: int, repeats: int, rho: float) -> list[tuple[Tensor, Tensor]]:
    """Experiments, each one step: before N(0, 1) and after N(.1, .8), correlated by ``rho``."""
    found = []
    for seed in range(repeats):
        generator = torch.Generator().manual_seed(seed)
        x, e = torch.randn(2, n, 2, 4, 4, generator=generator, dtype=torch.float64)
        found.append((x, 0.1 + 0.8**0.5 * (rho * x + (1 - rho**2) ** 0.5 * e)))
    return found


def test_step_kl_floor_is_the_uncorrected_estimate_less_the_corrected_one():
    before, after = pairs(64, 1, 0.9)[0]
    curves = by_hand(StepKL(), [(before, after)]).curves
    x, y = before.flatten(1), after.flatten(1)
    raw = kl_divergence(Normal(x.mean(0), x.std(0)), Normal(y.mean(0), y.std(0))).mean()
    assert curves["step_kl_floor"].value[0] + curves["step_kl"].value[0] == pytest.approx(float(raw), rel=1e-6)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_step_kl_floor_is_the_bias_of_the_uncorrected_estimate(rho: float):
    """Per direction ½ [r (1 − ρ²) 2/(N−3) + ((N−1)/(N−3)) (δ² + var(x−y)/N)/σ_y² − δ²/σ_y²], nats; the floor's own
    spread over 100 experiments of 32 directions is its standard error, and 5 % is left to the estimated correlation."""
    n, repeats, variance, gap = 64, 100, 0.8, 0.1
    floors, raws = [], []
    for before, after in pairs(n, repeats, rho):
        curves = by_hand(StepKL(), [(before, after)]).curves
        floors.append(curves["step_kl_floor"].value[0])
        raws.append(floors[-1] + curves["step_kl"].value[0])
    inflation = (n - 1) / (n - 3)
    difference = 1 + variance - 2 * rho * variance**0.5
    bias = 1 / variance * (1 - rho**2) * (inflation - 1)
    bias += (inflation * (gap**2 + difference / n) - gap**2) / variance
    truth = float(kl_divergence(Normal(0.0, 1.0), Normal(gap, variance**0.5)))
    for found, expected in ((np.array(floors), bias / 2), (np.array(raws) - truth, bias / 2)):
        standard_error = found.std(ddof=1) / repeats**0.5
        assert expected > 6 * standard_error
        assert abs(found.mean() - expected) < 4 * standard_error + 0.05 * expected


def test_step_kl_floor_of_a_perfect_model_is_that_of_its_linear_steps(perfect: ProbeRecord):
    """z_s is linear in z_t, ρ = 1: ½ [((N−1)/(N−3)) (δ² + (1−m)² P_t/N) − δ²]/P_s, δ² known to a few per cent."""
    *_, ideal = closed_form()
    delta = (ideal.mean_s - ideal.mean_t) ** 2
    slope = (ideal.var_s / ideal.var_t).sqrt()
    n = NUM_SAMPLES
    gap = (n - 1) / (n - 3) * (delta + (1 - slope) ** 2 * ideal.var_t / n) - delta
    expected = (0.5 * gap / ideal.var_s).mean(1).numpy()
    moving = expected > 1e-12
    np.testing.assert_allclose(perfect.curves["step_kl_floor"].value[moving], expected[moving], rtol=0.05)


def test_step_kl_js_is_bounded_and_small_for_small_steps(perfect: ProbeRecord):
    """JS ≤ ln 2, and a quarter of the KL, less the asymmetry, where the two sides are close: JS ≈ KL/4."""
    js, kl = perfect.curves["step_kl_js"].value, perfect.curves["step_kl"].value
    assert ((js >= 0) & (js <= np.log(2))).all()
    small = (kl > 1e-5) & (kl < 1e-3)
    assert small.sum() > 10
    np.testing.assert_allclose(js[small], (kl + perfect.curves["step_kl_floor"].value)[small] / 4, rtol=0.1)


def test_what_the_sampler_costs_is_told_apart_from_the_networks_fault(perfect: ProbeRecord, corrupted: ProbeRecord):
    """The sampler's part is the ideal's end, whatever the network; by bands they make up the whole."""
    found = perfect.curves["marginal_gap"]
    end, width = perfect.curves["marginal_gap_ideal"].value[-1], (found.upper - found.lower)[-1] / 2
    assert perfect.scalars["sampler_gap"] == corrupted.scalars["sampler_gap"] == end
    assert abs(perfect.scalars["network_gap"]) < 2 * width
    assert corrupted.scalars["network_gap"] > 10 * width
    for name in ("marginal_gap", "marginal_gap_ideal"):
        bands = [corrupted.curves[f"{name}/band{k}"].value for k in range(4)]
        np.testing.assert_allclose(np.mean(bands, axis=0), corrupted.curves[name].value, rtol=1e-6)
    few = probe_sampling(gaussian_model(), exact_reference(gaussian_model()), Sampling(8, 5), [MarginalGap()])
    assert few.scalars["sampler_gap"] > 10 * end


def test_terminal_mismatch_is_the_kl_of_the_noisiest_level_from_the_prior(perfect: ProbeRecord):
    mean, variance, grid, _ = closed_form()
    alpha, sigma = grid.alpha_t[0], grid.sigma_t[0]
    noisiest = Normal(alpha * mean, (alpha**2 * variance + sigma**2).sqrt())
    expected = kl_divergence(noisiest, Normal(torch.zeros(32).double(), torch.ones(32).double())).mean()
    assert perfect.scalars["terminal_mismatch"] == pytest.approx(float(expected), rel=1e-6)
