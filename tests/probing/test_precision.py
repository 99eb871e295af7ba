"""What fewer bits lose, against closed forms: exact denoisers of Gaussian data whose timestep or weights are rounded."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldmprobe.analysis.bands import bands_of
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.precision import FORMATS, probe_precision
from tests.helpers import gaussian_model, refused
from tests.probing.gaussian import draw


class RoundedTimestep(nn.Module):
    """A denoiser whose timesteps below 256 are told as multiples of 32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.network(z_t, told(t), condition)


def told(t: Tensor) -> Tensor:
    return torch.where(t < 256, (t / 32).round().to(t.dtype) * 32, t)


def rounded_weights(network: nn.Module) -> nn.Module:
    network.variance.copy_(coarse(network.variance))
    return network


def coarse(variance: Tensor) -> Tensor:
    """The large ones to the nearest power of four."""
    return torch.where(variance > 0.2, 4 ** (variance.log2() / 2).round(), variance)


Filters = Callable[[NoiseSchedule, int, Tensor], tuple[Tensor, Tensor]]


def filter_at(schedule: NoiseSchedule, timestep: int, ell: Tensor) -> tuple[Tensor, Tensor]:
    """Return ε̂ = slope · (z − center · mean) of the exact denoiser at a level."""
    alpha, sigma = schedule.alpha[timestep], schedule.sigma[timestep]
    return sigma / (alpha**2 * ell + sigma**2), alpha


def lost(wrong: Filters) -> tuple[np.ndarray, np.ndarray]:
    """Return λ and the nats that a wrong filter loses at each level, (L,): an exact denoiser's error is uncorrelated with
    all that is made of z."""
    model = gaussian_model()
    schedule, mean = model.schedule, model.network.mean.detach()
    ell = model.network.variance.detach()
    record = probe_precision(model, HeldOut(draw(model, 2), {}), {"as it is": lambda network: network}, num_draws=2)
    curve = record.curves["precision_lost/as it is"]
    errors = []
    for timestep in curve.timestep.tolist():
        slope, alpha = filter_at(schedule, timestep, ell)
        other, center = wrong(schedule, timestep, ell)
        v = alpha**2 * ell + schedule.sigma[timestep] ** 2
        errors.append(((other - slope) ** 2 * v + (other * (alpha - center) * mean) ** 2).mean())
    return curve.log_snr, nats_per_error(curve.log_snr, 32) * torch.stack(errors).numpy()


@pytest.mark.parametrize(
    ("change", "wrong", "where"),
    [
        (RoundedTimestep, lambda schedule, t, ell: filter_at(schedule, int(told(torch.tensor(t))), ell), "+3…+6"),
        (rounded_weights, lambda schedule, t, ell: filter_at(schedule, t, coarse(ell)), "0…+3"),
    ],
    ids=["rounded timesteps", "rounded weights"],
)
def test_what_is_planted_is_found_where_it_is_and_as_large_as_it_is(change, wrong: Filters, where: str):
    model = gaussian_model()
    record = probe_precision(model, HeldOut(draw(model, 512), {}), {"planted": change}, num_draws=512, batch_size=512)
    log_snr, truth = lost(wrong)
    found = record.curves["precision_lost/planted"]
    width = found.upper - found.value
    assert (np.abs(found.value - truth) < 2 * width + 1e-9).all()
    total, half = (record.scalars[f"precision_lost_in_all{end}/planted"] for end in ("", "_half_width"))
    assert abs(total - truth.sum()) < 1.5 * half < truth.sum()
    worst = max(bands_of(log_snr), key=lambda band: band.sum(truth))
    assert worst.name == where
    assert f"most in log-SNR {where}." in record.provenance["summary"]


def test_bf16_and_int8_change_copies_alone():
    model = gaussian_model(dtype=torch.float32)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    formats = {name: FORMATS[name] for name in ("bf16", "int8", "fp8")}
    record = probe_precision(model, HeldOut(draw(model, 32), {}), formats)
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
    assert all(value.dtype == torch.float32 for value in model.network.state_dict().values())
    assert all(np.abs(record.curves[f"precision_lost/{name}"].value).max() > 0 for name in formats)
    layer = nn.Conv2d(3, 5, 2).requires_grad_(False)
    off = (FORMATS["int8"](copy.deepcopy(layer)).weight - layer.weight).abs().amax((1, 2, 3))
    assert bool((off > 0).all() and (off <= 1.001 * layer.weight.abs().amax((1, 2, 3)) / 254).all())
    with refused("There is 1 held-out image"):
        probe_precision(model, HeldOut(draw(model, 1), {}))
