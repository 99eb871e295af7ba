"""Loss weights, as factors on ε's and on any other prediction's squared error."""

import numpy as np
import pytest
import torch

from ldmprobe.diffusion.prediction import prediction_target, to_x0_and_epsilon
from ldmprobe.diffusion.schedule import PREDICTION_TYPES, NoiseSchedule
from ldmprobe.diffusion.weighting import MinSNR, PlainWeighting
from tests.helpers import FLOAT64, sd_scheduler

LOG_SNR = torch.linspace(-8, 8, 33, dtype=torch.float64)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_plain_weight_is_one_on_whatever_is_predicted(prediction_type: str):
    assert torch.equal(PlainWeighting().prediction_weight(LOG_SNR, prediction_type), torch.ones_like(LOG_SNR))


def test_plain_weighting_has_no_weight_on_epsilon_and_says_what_to_call():
    with pytest.raises(NotImplementedError, match="call prediction_weight"):
        PlainWeighting().epsilon_weight(LOG_SNR)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize(
    ("prediction_type", "divisor"),  # Hang et al., 2023, section 3.4
    [("epsilon", lambda snr: snr), ("sample", np.ones_like), ("v_prediction", lambda snr: snr + 1)],
)
def test_min_snr_equals_the_papers_formulas(gamma: float, prediction_type: str, divisor):
    snr = np.exp(LOG_SNR.numpy())
    expected = torch.from_numpy(np.minimum(snr, gamma) / divisor(snr))
    torch.testing.assert_close(MinSNR(gamma).prediction_weight(LOG_SNR, prediction_type), expected, **FLOAT64)


def test_min_snr_on_epsilon_is_finite_at_zero_snr():
    weight = MinSNR().prediction_weight(torch.tensor([-torch.inf, 0.0], dtype=torch.float64), "epsilon")
    assert weight.tolist() == [1.0, 1.0]


def test_min_snr_on_v_is_finite_at_zero_snr():
    assert MinSNR().prediction_weight(torch.tensor([-torch.inf]), "v_prediction").tolist() == [0.0]


def test_weighted_loss_of_a_network_does_not_depend_on_how_it_states_its_prediction():
    schedule = NoiseSchedule(sd_scheduler())
    t = torch.tensor([0, 10, 200, 500, 800, 999])
    generator = torch.Generator().manual_seed(0)
    x0, epsilon, guess = torch.randn(3, len(t), 2, 4, 4, generator=generator, dtype=torch.float64)
    alpha, sigma = schedule.levels(t, x0)
    z_t = alpha * x0 + sigma * epsilon
    guessed = to_x0_and_epsilon("v_prediction", guess, z_t, alpha, sigma)
    losses = []
    for prediction_type in PREDICTION_TYPES:
        target = prediction_target(prediction_type, x0, epsilon, alpha, sigma)
        answer = prediction_target(prediction_type, *guessed, alpha, sigma)
        weight = MinSNR().prediction_weight(schedule.log_snr[t], prediction_type)
        losses.append(weight * (answer - target).pow(2).flatten(1).mean(1))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-9, atol=0)
