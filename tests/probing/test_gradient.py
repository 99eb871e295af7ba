"""Gradients by noise level against a linear model, whose gradients have closed forms (Isserlis), and left untouched."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldmprobe.analysis.bands import bands_of
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.gradient import _Folding, probe_gradient
from ldmprobe.probing.held_out import HeldOut
from tests.helpers import gaussian_model, refused
from tests.probing.gaussian import draw

DIMENSION = 32


class Diagonal(nn.Module):
    """ε̂ = θ z, entry by entry, at all levels alike."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(0.2, 0.9, DIMENSION).view(2, 4, 4))

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.theta * z_t


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    perfect = gaussian_model(dtype=torch.float32)
    return DiffusionModel(Diagonal(), perfect.schedule, (2, 4, 4))


@pytest.fixture(scope="module")
def record(model: DiffusionModel) -> ProbeRecord:
    """The probe, which leaves gradients and random state as they were."""
    latents = draw(gaussian_model(dtype=torch.float32), 768)
    model.network.theta.grad, state = torch.ones(2, 4, 4), torch.get_rng_state()
    found = probe_gradient(model, HeldOut(latents, {}), num_draws=768, batch_size=96)
    assert torch.equal(model.network.theta.grad, torch.ones(2, 4, 4))
    assert torch.equal(torch.get_rng_state(), state)
    return found


def closed_form(model: DiffusionModel, timesteps: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return E‖g‖² (L,) and ḡ (L, D). With u = θz − ε, E[u² z²] = E[u²] E[z²] + 2 E[uz]² about means of 0, and the mean
    of x_0 adds its own products."""
    perfect = gaussian_model()
    mu, ell = perfect.network.mean.detach().flatten(), perfect.network.variance.detach().flatten()
    theta = model.network.theta.detach().double().flatten()
    squares, means = [], []
    for timestep in timesteps.tolist():
        alpha, sigma = model.schedule.alpha[timestep], model.schedule.sigma[timestep]
        a, b, v = alpha * mu, theta * alpha * mu, alpha**2 * ell + sigma**2  # means of z and u; variance of z
        uu, uz = theta**2 * v - 2 * theta * sigma + 1, theta * v - sigma
        means.append(2 / DIMENSION * (uz + a * b))
        fourth = uu * v + 2 * uz**2 + a**2 * uu + b**2 * v + 4 * a * b * uz + a**2 * b**2
        squares.append((2 / DIMENSION) ** 2 * fourth.sum())
    return torch.stack(squares), torch.stack(means)


def test_norms_and_cosines_of_a_linear_model_are_its_closed_forms(model: DiffusionModel, record: ProbeRecord):
    """Levels share their draws, so they miss together; none may miss by twice its half-width of 2.4 errors."""
    square, mean_square = record.curves["gradient_square/draw"], record.curves["gradient_square/mean"]
    G, mean = closed_form(model, square.timestep)
    for found, truth in ((square, G), (mean_square, mean.pow(2).sum(1))):
        assert (np.abs(found.value - truth.numpy()) < 2 * (found.upper - found.value)).all()
        assert np.median((found.upper - found.value) / truth.numpy()) < 0.3
    bands = bands_of(square.log_snr)
    of_bands = torch.stack([torch.from_numpy(band.sum(mean.numpy()) / band.share.sum()) for band in bands])
    expected = nn.functional.cosine_similarity(of_bands[:, None], of_bands[None], dim=-1)
    rows = [record.curves[f"gradient_cosine/{band.low:+.0f}"] for band in bands]
    cosines, width = (
        np.stack(each) for each in zip(*((row.value, row.upper - row.value) for row in rows), strict=True)
    )
    assert (np.abs(cosines - expected.numpy()) < 2 * width + 1e-6).all()
    assert width.max() < 0.3
    assert float(expected.min()) < -0.5  # there is a conflict to be seen


def test_ceiling_and_noise_scale_are_those_of_even_timesteps(model: DiffusionModel, record: ProbeRecord):
    G, mean = closed_form(model, np.arange(model.schedule.num_timesteps))
    ceiling, scale = G.mean() / G.sqrt().mean() ** 2, G.mean() / mean.mean(0).pow(2).sum() - 1
    assert record.scalars["gradient_ceiling"] == pytest.approx(float(ceiling), rel=0.05)
    width = record.scalars["gradient_noise_scale_half_width"]
    assert abs(record.scalars["gradient_noise_scale"] - float(scale)) < width + 0.05 * float(scale)
    assert width < 0.5 * float(scale)


def test_folded_gradients_have_the_same_products_but_for_a_third_of_a_percent(monkeypatch):
    monkeypatch.setattr("ldmprobe.probing.gradient._KEPT", 2**12)
    a, b = torch.randn(2, 3 * 2**12 + 5, generator=torch.Generator().manual_seed(0))
    fold = _Folding(len(a), a.device)
    folded = [fold((each[:1000], each[1000:])) for each in (a, a + b)]
    assert float(folded[0] @ folded[1] / (a @ (a + b))) == pytest.approx(1, abs=5 * 2 / 2**6)


def test_an_average_of_the_network_and_too_few_latents_are_refused(model: DiffusionModel):
    with refused("15 training latents and num_draws is 256; expected at least 16"):
        probe_gradient(model, HeldOut(torch.zeros(15, 2, 4, 4), {}))
    frozen = DiffusionModel(Diagonal().requires_grad_(False), model.schedule, (2, 4, 4))
    with refused("Nothing in Diagonal is trained"):
        probe_gradient(frozen, HeldOut(torch.zeros(16, 2, 4, 4), {}))
