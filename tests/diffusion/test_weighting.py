"""Loss weights: the papers' formulas in the papers' units, one loss whatever is predicted, finite at every noise
level."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldmprobe.diffusion.prediction import KINDS
from ldmprobe.diffusion.weighting import (
    EDM,
    P2,
    Debiased,
    LearnedUncertainty,
    LossWeighting,
    MaxSNR,
    MinSNR,
    Sigmoid,
    SNRPlusOne,
    SNRPower,
    SoftMinSNR,
    UniformWeighting,
)
from tests.diffusion.catalog import WEIGHTINGS, concrete_classes, schedules
from tests.helpers import FLOAT32, FLOAT64, refused

LOG_SNR = torch.linspace(-12, 12, 49, dtype=torch.float64)
EXTREMES = [-math.inf, -1000.0, -31.0, -20.0, 0.0, 20.0, 31.0, 1000.0, math.inf]

each_weighting = pytest.mark.parametrize("name", WEIGHTINGS)
each_prediction_type = pytest.mark.parametrize("prediction_type", KINDS)


def test_every_weighting_is_in_the_catalog_of_the_tests():
    assert {type(make()) for make in WEIGHTINGS.values()} == concrete_classes(LossWeighting)


# --- formulas ---------------------------------------------------------------------------------------------------------


@each_prediction_type
def test_plain_weight_is_one_on_whatever_is_predicted(prediction_type: str):
    assert torch.equal(UniformWeighting().prediction_weight(LOG_SNR, KINDS[prediction_type]), torch.ones_like(LOG_SNR))


def test_plain_weighting_has_no_weight_on_epsilon_and_says_what_to_call():
    with pytest.raises(NotImplementedError, match="call prediction_weight"):
        UniformWeighting().log_weight(LOG_SNR)


def sigma(snr: np.ndarray) -> np.ndarray:
    """EDM's noise level, x_0 + σ n."""
    return snr**-0.5


def flow_time(snr: np.ndarray) -> np.ndarray:
    """Rectified flow's t, (1 − t) x_0 + t ε."""
    return 1 / (1 + snr**0.5)


@pytest.mark.parametrize(
    ("weighting", "prediction_type", "published"),
    [
        # Ho et al., 2020: L_simple; seen on the other targets by Salimans & Ho, 2022.
        (SNRPower(), "epsilon", np.ones_like),
        (SNRPower(), "sample", lambda snr: snr),
        (SNRPower(), "v_prediction", lambda snr: snr / (snr + 1)),
        (SNRPower(), "flow", lambda snr: (1 - flow_time(snr)) ** 2),
        (SNRPower(-1), "sample", np.ones_like),
        (SNRPower(-2), "sample", lambda snr: 1 / snr),
        # Hang et al., 2023, section 3.4
        *((MinSNR(gamma), "epsilon", lambda snr, gamma=gamma: np.minimum(snr, gamma) / snr) for gamma in (1, 5)),
        (MinSNR(), "sample", lambda snr: np.minimum(snr, 5)),
        (MinSNR(), "v_prediction", lambda snr: np.minimum(snr, 5) / (snr + 1)),
        (MaxSNR(5), "epsilon", lambda snr: np.maximum(snr, 5) / snr),
        # Salimans & Ho, 2022, section 4
        (MaxSNR(), "sample", lambda snr: np.maximum(snr, 1)),
        (SNRPlusOne(), "sample", lambda snr: snr + 1),
        (SNRPlusOne(), "v_prediction", np.ones_like),
        # Crowson et al., 2024: 1/(σ² + 1/γ) on x_0
        (SoftMinSNR(), "sample", lambda snr: 1 / (sigma(snr) ** 2 + 1 / 4)),
        (SoftMinSNR(9), "epsilon", lambda snr: 9 / (snr + 9)),
        # Choi et al., 2022, eq. 8
        (P2(), "epsilon", lambda snr: 1 / (1 + snr)),
        (P2(2, 0.5), "epsilon", lambda snr: 1 / (2 + snr) ** 0.5),
        (P2(gamma=0.0), "epsilon", np.ones_like),
        # Yu et al., 2023
        (Debiased(), "epsilon", lambda snr: 1 / np.sqrt(np.minimum(snr, 1000))),
        # Karras et al., 2022, table 1: λ(σ) on the denoised image, which is 1/c_out²
        (EDM(0.5), "sample", lambda snr: (sigma(snr) ** 2 + 0.5**2) / (sigma(snr) * 0.5) ** 2),
        (EDM(), "sample", lambda snr: (sigma(snr) / np.sqrt(sigma(snr) ** 2 + 1)) ** -2),
        (LearnedUncertainty(), "sample", lambda snr: (sigma(snr) ** 2 + 1) / sigma(snr) ** 2),
        # Kingma & Gao, 2023: sigmoid(−λ + 2) on ε; Hoogeboom et al., 2024: e^b sigmoid(λ − b) on x_0
        (Sigmoid(2.0), "epsilon", lambda snr: 1 / (1 + np.exp(np.log(snr) - 2))),
        (Sigmoid(-3.0), "sample", lambda snr: np.exp(-3) / (1 + np.exp(-3 - np.log(snr)))),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, LossWeighting) else None,
)
def test_weight_equals_the_published_formula(weighting: LossWeighting, prediction_type: str, published):
    expected = torch.from_numpy(published(np.exp(LOG_SNR.numpy())))
    torch.testing.assert_close(weighting.prediction_weight(LOG_SNR, KINDS[prediction_type]), expected, **FLOAT64)
    single = weighting.prediction_weight(LOG_SNR.float(), KINDS[prediction_type])
    torch.testing.assert_close(single, expected.float(), **FLOAT32)


# --- one loss, whatever is predicted ----------------------------------------------------------------------------------


def stated_losses(weighting: LossWeighting, log_snr: Tensor) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """The loss of each sample, its gradient with respect to a parameter of one model function and to the weighting's
    own, for that function stated as every prediction type."""
    generator = torch.Generator().manual_seed(0)
    x0, epsilon = torch.randn(2, len(log_snr), 5, generator=generator, dtype=torch.float64)
    alpha, sigma = log_snr.sigmoid().sqrt()[:, None], (-log_snr).sigmoid().sqrt()[:, None]
    z_t = alpha * x0 + sigma * epsilon
    found = []
    for prediction_type in KINDS:
        theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        v = torch.tanh(theta * z_t) - 0.3 * theta
        answer = KINDS[prediction_type].target(alpha * z_t - sigma * v, alpha * v + sigma * z_t, alpha, sigma)
        errors = (answer - KINDS[prediction_type].target(x0, epsilon, alpha, sigma)).pow(2).mean(1)
        losses = weighting(errors, weighting.prediction_weight(log_snr, KINDS[prediction_type]), log_snr)
        own = list(weighting.parameters())
        gradient, *of_own = torch.autograd.grad(losses.sum(), [theta, *own])
        found.append((losses.detach(), gradient, of_own[0] if of_own else None))
    return found


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name != "plain"])
def test_loss_and_gradient_do_not_depend_on_how_a_network_states_its_prediction(name: str):
    stated = stated_losses(WEIGHTINGS[name](), LOG_SNR)
    for other in stated[1:]:
        torch.testing.assert_close(other, stated[0], rtol=1e-9, atol=0)


def test_with_the_plain_weight_they_do():
    stated = stated_losses(UniformWeighting(), LOG_SNR)
    gradients = torch.stack([gradient for _, gradient, _ in stated])
    assert float((gradients[1:] / gradients[0] - 1).abs().min()) > 0.1


# --- limits -----------------------------------------------------------------------------------------------------------


@each_weighting
@each_prediction_type
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weight_is_finite_at_every_noise_level(name: str, prediction_type: str, dtype: torch.dtype):
    weight = WEIGHTINGS[name]().prediction_weight(torch.tensor(EXTREMES, dtype=dtype), KINDS[prediction_type])
    assert weight.dtype == dtype
    assert weight.isfinite().all()
    assert (weight >= 0).all()


# (on ε, x_0, v, u) where SNR → 0, then where SNR → ∞; None where there is none.
LIMITS = {
    "plain": [(1, 1, 1, 1), (1, 1, 1, 1)],
    "simple": [(1, 0, 0, 0), (1, None, 1, 1)],
    "even x0": [(None, 1, 1, 1), (0, 1, 0, 0)],
    "inverse SNR": [(None, None, None, None), (0, 0, 0, 0)],
    "min-SNR": [(1, 0, 0, 0), (0, 5, 0, 0)],
    "truncated SNR": [(None, 1, 1, 1), (1, None, 1, 1)],
    "max-SNR-5": [(None, 5, 5, 5), (1, None, 1, 1)],
    "soft-min-SNR": [(1, 0, 0, 0), (0, 4, 0, 0)],
    "SNR+1": [(None, 1, 1, 1), (1, None, 1, 1)],
    "P2": [(1, 0, 0, 0), (0, 1, 0, 0)],
    "P2, gamma .5": [(1, 0, 0, 0), (0, None, 0, 0)],
    "debiased": [(None, 0, 0, 0), (1000**-0.5, None, 1000**-0.5, 1000**-0.5)],
    "EDM": [(None, 1, 1, 1), (1, None, 1, 1)],
    "sigmoid": [(1, 0, 0, 0), (0, math.exp(-1), 0, 0)],
    "learned": [(None, 1, 1, 1), (1, None, 1, 1)],
}


@each_weighting
def test_weight_has_its_limit_where_there_is_no_signal_and_where_there_is_no_noise(name: str):
    weighting = WEIGHTINGS[name]()
    for log_snr, limits in zip((-math.inf, math.inf), LIMITS[name], strict=True):
        for prediction_type, limit in zip(KINDS, limits, strict=True):
            found = float(
                weighting.prediction_weight(torch.tensor([log_snr], dtype=torch.float64), KINDS[prediction_type])
            )
            if limit is None:
                assert found > 1000, (log_snr, prediction_type)  # without bound, held finite
            else:
                assert found == pytest.approx(limit, rel=1e-5, abs=1e-5), (log_snr, prediction_type)


# --- learned uncertainty ----------------------------------------------------------------------------------------------


def test_learned_uncertainty_converges_to_the_log_of_the_weighted_error():
    torch.manual_seed(0)
    weighting = LearnedUncertainty(MinSNR())
    log_snr = schedules()["stable diffusion, ε"].log_snr[::100]
    weights = weighting.prediction_weight(log_snr, KINDS["epsilon"])
    # Errors as of 16-dimensional data, that fall with the noise.
    errors = torch.distributions.Gamma(8.0, 8.0).sample((1000, 10)).double() / (1 + log_snr.exp())
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.1)
    for _ in range(1000):
        optimizer.zero_grad()
        weighting(errors.mean(0), weights, log_snr).mean().backward()
        optimizer.step()
    level_by_level = (weights * errors).mean(0)
    assert float(level_by_level.log().abs().max()) > 3  # there was something to learn
    torch.testing.assert_close(weighting.uncertainty(log_snr).double(), level_by_level.log(), rtol=0, atol=0.01)
    scaled = (weights * errors / weighting.uncertainty(log_snr).exp()).mean(0)
    torch.testing.assert_close(scaled, torch.ones_like(scaled), rtol=0, atol=0.01)


def test_gradient_of_the_uncertainty_is_one_less_the_scaled_error():
    weighting = WEIGHTINGS["learned"]()
    log_snr = torch.tensor([-3.0, 0.5], dtype=torch.float64)
    errors = torch.tensor([0.4, 2.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.5, 0.2], dtype=torch.float64)
    u = weighting.uncertainty(log_snr).detach()
    losses = weighting(errors, weights, log_snr)
    torch.testing.assert_close(losses.detach(), weights * errors.detach() * (-u).exp() + u, **FLOAT64)
    of_errors, of_linear = torch.autograd.grad(losses.sum(), [errors, weighting.linear.weight])
    torch.testing.assert_close(of_errors, weights * (-u).exp(), **FLOAT64)
    (slope,) = torch.autograd.grad(weighting.uncertainty(log_snr)[0], [weighting.linear.weight])
    (slope_1,) = torch.autograd.grad(weighting.uncertainty(log_snr)[1], [weighting.linear.weight])
    expected = 1 - (weights * errors.detach() * (-u).exp())
    torch.testing.assert_close(of_linear, expected[0] * slope + expected[1] * slope_1, **FLOAT64)


def test_learned_uncertainty_starts_as_its_base_and_is_finite_without_signal_and_without_noise():
    log_snr = LOG_SNR.float()
    errors = torch.rand(len(log_snr), generator=torch.Generator().manual_seed(0))
    weights = EDM().prediction_weight(log_snr, KINDS["v_prediction"])
    assert torch.equal(LearnedUncertainty()(errors, weights, log_snr), weights * errors)
    assert WEIGHTINGS["learned"]().uncertainty(torch.tensor([-math.inf, math.inf])).isfinite().all()


def test_learned_uncertainty_is_in_the_state_with_its_features():
    weighting, other = (LearnedUncertainty(num_features=8) for _ in range(2))
    torch.nn.init.normal_(weighting.linear.weight)
    other.load_state_dict(weighting.state_dict())
    assert torch.equal(other.uncertainty(LOG_SNR), weighting.uncertainty(LOG_SNR))


def test_learned_uncertainty_keeps_its_precision_under_autocast_and_in_a_module_that_is_cast():
    weighting = WEIGHTINGS["learned"]().float()
    nn.init.normal_(weighting.linear.weight)
    expected = weighting.uncertainty(LOG_SNR)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(weighting.uncertainty(LOG_SNR), expected, **FLOAT32)
    nn.ModuleList([weighting]).bfloat16()
    torch.testing.assert_close(weighting.uncertainty(LOG_SNR), expected, **FLOAT32)


# --- bad arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weighting", "argument"),
    [*[(of, "gamma") for of in (MinSNR, MaxSNR, SoftMinSNR)], (P2, "k"), (Debiased, "max_snr"), (EDM, "sigma_data")],
)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_an_argument_that_is_not_above_0_is_an_error(weighting: type[LossWeighting], argument: str, value: float):
    with refused(f"{weighting.__name__} got {argument} {value}; expected a number above 0"):
        weighting(**{argument: value})
