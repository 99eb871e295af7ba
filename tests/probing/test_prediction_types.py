"""The same probes on models of noise, velocity and flow that are perfect for the same Gaussian data."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses import MarginalGap, OneStepError, StepKL
from ldmprobe.probing.denoising import LOG_SNR_SPACING, log_snr_grid, probe_denoising
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from tests.helpers import gaussian_model
from tests.probing.gaussian import draw, exact_reference, flow_model, v_model

MODELS: dict[str, Callable[[], DiffusionModel]] = {
    "ε": gaussian_model,
    "flow": flow_model,
    "flow, shift 3": lambda: flow_model(3.0),
    "v": v_model,
    "v from zero SNR": lambda: v_model(rescale_betas_zero_snr=True, timestep_spacing="trailing", set_alpha_to_one=True),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> DiffusionModel:
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def ddim(model: DiffusionModel) -> ProbeRecord:
    held_out = HeldOut(draw(gaussian_model(), 512, seed=5), {})
    analyses = [StepKL(), MarginalGap(), OneStepError(512)]
    return probe_sampling(model, exact_reference(model), Sampling(512, 50), analyses=analyses, held_out=held_out)


@pytest.fixture(scope="module")
def denoising(model: DiffusionModel) -> ProbeRecord:
    held_out = HeldOut(draw(gaussian_model(), 512, seed=5), {})
    return probe_denoising(model, held_out, exact_reference(model))


def assert_covers(curve: Curve, truth: np.ndarray | float, at_least: int, limit: float = 2.0) -> None:
    """Levels share their samples and miss together: 80 % within the 95 % interval, none beyond ``limit`` of them."""
    half_width = (curve.upper - curve.lower) / 2
    known = np.isfinite(half_width) & (half_width > 1e-12)
    assert known.sum() >= at_least
    distance = np.abs(curve.value - truth)[known] / half_width[known]
    assert (distance < 1).mean() >= 0.8
    assert distance.max() < limit


@pytest.mark.parametrize("name", ["step_kl", "marginal_gap"])
def test_a_curve_is_the_ideal_one_within_its_interval(ddim: ProbeRecord, name: str):
    assert_covers(ddim.curves[name], ddim.curves[f"{name}_ideal"].value, 48)


def test_one_step_error_of_a_perfect_model_is_nothing(ddim: ProbeRecord):
    value = ddim.curves["one_step_excess"].value
    known = np.isfinite(value)  # an ε-error cannot be had of a first step from α = 0 by every prediction
    assert known.sum() >= len(value) - 1
    np.testing.assert_allclose(value[known], 0, atol=2e-6)


def test_what_one_step_of_a_flow_costs_is_not_told_apart():
    """It ends in the mean, at no finite distance from the data."""
    model = flow_model()
    one, two = (probe_sampling(model, exact_reference(model), Sampling(8, steps)).scalars for steps in (1, 2))
    assert one.keys() == two.keys() - {"sampler_gap", "network_gap"}
    assert abs(two["network_gap"]) < two["sampler_gap"] < np.inf


def test_curves_of_a_flow_lie_over_the_nearest_training_timesteps():
    model = flow_model(3.0)
    grid = model.schedule.native_grid(10)
    record = probe_sampling(model, exact_reference(model), Sampling(8, 10))
    timesteps = record.curves["step_kl"].timestep
    off = (model.schedule.log_snr[None].nan_to_num() - grid.log_snr[:, None].nan_to_num()).abs()
    np.testing.assert_array_equal(timesteps, off.argmin(1).numpy())
    np.testing.assert_allclose(model.schedule.sigma[timesteps].numpy(), grid.sigma_t.numpy(), atol=2e-3)
    assert record.provenance["prediction_type"] == "flow"


def test_skill_and_calibration_are_0_within_their_intervals(denoising: ProbeRecord):
    """The latter less 16/(7n), what fitting two numbers to nothing costs."""
    skill, residual = (denoising.curves[name] for name in ("denoising_skill", "calibration_residual"))
    assert_covers(skill, 0.0, 12, limit=3 / 1.96)
    assert (skill.upper - skill.lower).max() / 2 < 0.06
    assert_covers(residual, -16 / 7 / 512, 12)
    assert (residual.lower < 0).all()


def test_levels_are_distinct_and_on_the_log_snr_grid(model: DiffusionModel):
    """Each level is counted once: a timestep that stood for two would weigh twice in nats."""
    t = log_snr_grid(model)
    assert (t.diff() < 0).all()
    log_snr = model.schedule.log_snr
    assert log_snr[t].isfinite().all()
    finite = log_snr[log_snr.isfinite()]
    coarsest = float(finite.diff().abs().max())
    on_grid = log_snr[t] / LOG_SNR_SPACING
    assert float((on_grid - on_grid.round()).abs().max()) * LOG_SNR_SPACING <= coarsest / 2 + 1e-9
    assert coarsest > LOG_SNR_SPACING or (on_grid.round().diff() == 1).all()  # no level of the grid is passed over
    assert float(log_snr[t[0]] - finite.min()) < 2 * LOG_SNR_SPACING
    assert float(finite.max() - log_snr[t[-1]]) < 2 * LOG_SNR_SPACING


def test_a_flow_network_is_told_t_times_sigma():
    """Told anything else, a network that reads its noise level from the timestep would not be perfect."""
    model, told = flow_model(3.0), []
    forward = model.network.forward
    model.network.forward = lambda z, t, condition: told.append(t) or forward(z, t, condition)
    probe_denoising(model, HeldOut(draw(model, 32), {}), exact_reference(model), num_draws=32)
    levels = 1000 * model.schedule.sigma[log_snr_grid(model)]
    expected = torch.cat([levels, levels.repeat_interleave(2)])  # and what is asked twice
    torch.testing.assert_close(torch.stack([t[0] for t in told]).double(), expected, rtol=1e-6, atol=1e-4)
