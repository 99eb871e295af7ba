"""A network that is asked the same thing twice: what of its error is chance is known exactly, and told."""

import numpy as np
import torch
from torch import Tensor, nn

from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import HeldOut, probe_denoising
from ldmprobe.probing.judge import judge
from ldmprobe.probing.verdict import State
from tests.helpers import gaussian_model
from tests.probing.gaussian import WithDropout, draw, exact_reference

WIDTH = 0.2  # of the noise that is added
BAND = (200, 500)  # of timesteps


class LeftInTraining(nn.Module):
    """A denoiser with a function of its own left on in a band, whatever mode it is in."""

    def __init__(self, network: nn.Module, gain: float = 1.0, width: float = WIDTH) -> None:
        super().__init__()
        self.network, self.gain, self.width = network, gain, width
        self.noise = torch.Generator().manual_seed(3)

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        epsilon = self.gain * self.network(z_t, t, condition)
        inside = BAND[0] <= float(t[0]) < BAND[1]
        return epsilon + inside * self.width * torch.randn(epsilon.shape, generator=self.noise)


def probed(network: nn.Module | None = None, step: int = 0, **options):
    model = gaussian_model()
    model = DiffusionModel(network or model.network, model.schedule, model.latent_shape)
    held_out = HeldOut(draw(gaussian_model(), 512), {})
    return probe_denoising(model, held_out, exact_reference(gaussian_model()), step=step, **options)


def test_added_noise_is_found_where_it_is_with_what_it_costs():
    perfect, record = probed(), probed(LeftInTraining(gaussian_model().network))
    assert not perfect.curves["prediction_chance"].value.any()
    curve = record.curves["prediction_chance"]
    inside = (curve.timestep >= BAND[0]) & (curve.timestep < BAND[1])
    assert inside.sum() == 3
    assert not curve.value[~inside].any()
    mse = record.curves["denoising_mse"].value
    # Eight latents leave the variance of noise uncertain by √(2/8D).
    tolerance = 5 * (2 / (8 * record.provenance["dimension"])) ** 0.5
    np.testing.assert_allclose((curve.value * mse)[inside], WIDTH**2, rtol=tolerance)
    np.testing.assert_allclose(
        (mse - perfect.curves["denoising_mse"].value)[inside], WIDTH**2, rtol=0.2
    )  # an average of many answers would be without it
    assert "Asked the same thing twice at log-SNR" in f"{record.provenance['summary']} {record.provenance['remarks']}"


def test_it_is_at_fault_at_once_and_though_its_error_falls():
    network = gaussian_model().network
    young, later = probed(LeftInTraining(network, 0.8), 100), probed(LeftInTraining(network, 0.9), 200)
    healthy = [probed(LeftInTraining(network, gain, width=0.0), step) for gain, step in ((0.8, 100), (0.9, 200))]
    assert judge(healthy).state is State.LEARNING
    for records in ([later], [young, later]):
        verdict = judge(records)
        assert verdict.state is State.AT_FAULT
        assert "is chance" in verdict.sentence
        assert "dropout" in verdict.action
        at_fault = {band.name for band in verdict.bands if band.state is State.AT_FAULT and "chance" in band.evidence}
        assert at_fault == {"−3…0", "0…+3"}


def test_dropout_that_evaluation_turns_off_is_not_told_of():
    record = probed(WithDropout(gaussian_model().network).train(), num_draws=64)
    assert not record.curves["prediction_chance"].value.any()
