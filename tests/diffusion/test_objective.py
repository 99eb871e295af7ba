"""Weight and density together: every pair finite and of mean 1, and the loss that comes of it."""

import math

import pytest
import torch
from torch import Tensor

from ldmprobe.diffusion.objective import TimestepObjective
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.timesteps import SpeeD, Stratified, UniformTimesteps
from ldmprobe.diffusion.weighting import EDM, LearnedUncertainty, MinSNR, SNRPower
from tests.diffusion.catalog import ADAPTIVE_SAMPLERS, SAMPLERS, WEIGHTINGS, schedules
from tests.helpers import FLOAT64

each_schedule = pytest.mark.parametrize("of", schedules())


@pytest.fixture(scope="module")
def samplers() -> dict[str, torch.nn.Module]:
    return {name: make() for name, make in SAMPLERS.items()}


@each_schedule
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_pair_has_finite_weights_of_mean_1_under_its_density(weighting: str, of: str, samplers):
    for name, sampler in samplers.items():
        objective = TimestepObjective(schedules()[of], WEIGHTINGS[weighting](), sampler)
        weights, p = objective.weights(), objective.probabilities()
        assert weights.shape == (1000,)
        assert weights.dtype == torch.float64
        assert weights.float().isfinite().all(), name
        assert (weights >= 0).all(), name
        assert float((p * weights).sum()) == pytest.approx(1, rel=1e-9), name


@each_schedule
def test_normalization_is_one_factor(of: str):
    schedule = schedules()[of]
    plain, normal = (TimestepObjective(schedule, EDM(), SpeeD(), normalize).weights() for normalize in (False, True))
    raw = EDM().prediction_weight(schedule.log_snr, schedule.prediction) * SpeeD().loss_factor(schedule)
    torch.testing.assert_close(plain, raw, **FLOAT64)
    torch.testing.assert_close(normal / plain, torch.full_like(raw, float(normal[500] / plain[500])), **FLOAT64)


def test_across_prediction_types_normalized_weights_differ_by_one_factor():
    weights = {}
    for of in ("ε", "x0", "v"):
        schedule = schedules()[f"stable diffusion, {of}"]
        scale = schedule.prediction.epsilon_error_scale(schedule.log_snr)
        weights[of] = TimestepObjective(schedule, MinSNR(), UniformTimesteps()).weights() / scale  # in ε-units
    for of in ("x0", "v"):
        ratio = weights[of] / weights["ε"]
        torch.testing.assert_close(ratio, ratio[:1].expand(1000), **FLOAT64)


def losses_of_every_timestep(objective: TimestepObjective, errors: Tensor) -> Tensor:
    return objective.losses(errors, torch.arange(objective.schedule.num_timesteps))


@pytest.mark.parametrize("weighting", [name for name in WEIGHTINGS if name != "learned"])
def test_loss_is_weight_times_error(weighting: str):
    objective = TimestepObjective(schedules()["zero terminal, v"], WEIGHTINGS[weighting](), SAMPLERS["EDM"]())
    t = torch.tensor([999, 3, 3, 500])
    errors = torch.tensor([0.3, 1.0, 2.0, 0.1], requires_grad=True)
    losses = objective.losses(errors, t)
    assert losses.dtype == torch.float32
    expected = objective.weights()[t].float()
    torch.testing.assert_close(losses.detach(), expected * errors.detach())
    (gradient,) = torch.autograd.grad(losses.sum(), [errors])
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", ADAPTIVE_SAMPLERS)
@pytest.mark.parametrize("weighting", ["min-SNR", "EDM", "learned"])
def test_what_is_trained_does_not_depend_on_where_an_importance_sampler_looks(name: str, weighting: str):
    """Its factor belongs to the whole loss: were it a part of w, a learned uncertainty would learn it and cancel it."""
    schedule = schedules()["stable diffusion, ε"]
    base = UniformTimesteps() if "second" in name else SAMPLERS["uniform in log-SNR"]()
    errors = 1 / (1 + schedule.log_snr.exp())
    found = []
    for sampler in (SAMPLERS[name](), base):
        objective = TimestepObjective(schedule, WEIGHTINGS[weighting](), sampler)
        found.append((objective.probabilities() * losses_of_every_timestep(objective, errors)).sum())
    torch.testing.assert_close(found[0], found[1], **FLOAT64)


def test_a_samplers_weights_survive_a_learned_uncertainty():
    """At the optimum of u each level's loss has slope 1: what is left of the noise levels is density times SpeeD's
    factor."""
    schedule = schedules()["stable diffusion, ε"]
    objective = TimestepObjective(schedule, LearnedUncertainty(SNRPower()), SpeeD())
    errors = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    losses = losses_of_every_timestep(objective, errors)
    (gradient,) = torch.autograd.grad(losses.sum(), [errors])
    factor = SpeeD().loss_factor(schedule)
    torch.testing.assert_close(gradient / gradient[0], factor / factor[0], rtol=1e-9, atol=0)


def test_a_samplers_factor_has_mean_1_of_its_own():
    """Where the error is 0, a learned uncertainty's loss is factor times u."""
    schedule = schedules()["stable diffusion, ε"]
    objective = TimestepObjective(schedule, WEIGHTINGS["learned"](), SpeeD())
    losses = losses_of_every_timestep(objective, torch.zeros(1000, dtype=torch.float64))
    factor = losses.detach() / objective.weighting.uncertainty(schedule.log_snr).detach()
    raw = SpeeD().loss_factor(schedule)
    torch.testing.assert_close(factor, raw / (objective.probabilities() * raw).sum(), rtol=1e-9, atol=0)


def test_a_weight_without_limit_where_there_is_no_signal_leaves_the_other_levels_their_share():
    for of in ("zero terminal, v", "flow"):
        schedule: NoiseSchedule = schedules()[of]
        objective = TimestepObjective(schedule, SNRPower(-2), SAMPLERS["uniform in log-SNR"]())
        seen = objective.probabilities() * objective.weights()
        assert seen[-1] == 0
        assert math.isclose(float(seen[:-1].sum()), 1, rel_tol=1e-9)


def test_stratified_sees_the_same_objective():
    schedule = schedules()["flow"]
    plain, stratified = (
        TimestepObjective(schedule, MinSNR(), sampler).weights() for sampler in (SpeeD(), Stratified(SpeeD()))
    )
    assert torch.equal(plain, stratified)
