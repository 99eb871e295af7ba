"""Inpainting and super-resolution of Gaussian images, whose conditional mean and variance are known.

An image x ~ N(0, Σ) of which y = A x is known has mean K y with K = ΣAᵀ(AΣAᵀ)⁻¹ and covariance Σ − KAΣ. The best denoiser reads y
off the picture that a conditioning joins to z_t, so that a wrong picture cannot pass.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ldmprobe
from ldmprobe import Sampling
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.sampling import sample_trajectory
from tests.helpers import sd_scheduler
from tests.models.gaussian_images import EYE, SIZE, Exact, images

NUM_SAMPLES = 1000


def of_masked(conditioning: ldmprobe.Masked) -> tuple[Tensor, Tensor]:
    """The known pixels, read off the second channel."""
    known = conditioning.for_samples(torch.zeros(1, dtype=torch.long))["concat"][0, 0].flatten() == 0
    return EYE[known], torch.cat([torch.zeros_like(EYE), EYE], dim=1)[known]


def of_small(conditioning: ldmprobe.LowResolution) -> tuple[Tensor, Tensor]:
    """The means over cells, read off the interpolated image."""
    cells = F.avg_pool2d(EYE.view(-1, 1, SIZE, SIZE), 2).flatten(1).T
    small = torch.eye(len(cells), dtype=torch.float64).view(-1, 1, SIZE // 2, SIZE // 2)
    interpolation = F.interpolate(small, size=SIZE, mode="bicubic").flatten(1).T
    return cells, torch.linalg.pinv(interpolation)


@pytest.mark.parametrize(
    ("conditioning", "of"),
    [
        (ldmprobe.Masked(["halves"], (0.5, 0.5), num_rows=1), of_masked),
        (ldmprobe.LowResolution(2, eight_bits=False, num_rows=1), of_small),
    ],
    ids=["inpainting", "super-resolution"],
)
def test_samples_have_the_mean_and_the_spread_that_are_known(conditioning, of):
    """Bias² ÷ variance is some 1/N by chance; the spread falls short by what 50 steps of DDIM lose, a tenth
    (on the schedule's own timesteps it would be a third)."""
    data = images()
    data.setup()
    conditioning.prepare(nn.Identity(), data, ldmprobe.LatentCodec())
    measurement, reading = of(conditioning)
    network = Exact(measurement, reading)
    model = ldmprobe.DiffusionModel(network, sd_scheduler(), (1, SIZE, SIZE), conditioning=conditioning)
    sampling = Sampling(num_samples=NUM_SAMPLES, num_steps=50, grid=ldmprobe.LogSNRGrid())
    with evaluating(model.modules):
        *_, last = sample_trajectory(model, sampling, sampling.levels(model), torch.arange(NUM_SAMPLES))
    x = last.x0.flatten(1).double()
    (batch,) = data.reference_batches(1, held_out=True)
    y = measurement @ batch["image"].flatten().double()  # of the row itself, not of the picture
    mean = network.gain @ y
    torch.testing.assert_close(x @ measurement.T, y.expand(NUM_SAMPLES, -1), rtol=0, atol=2e-3)
    assert ((x.mean(0) - mean) ** 2).sum() / network.rest.trace() < 0.01
    spread = float(x.var(0).sum() / network.rest.trace())
    assert 0.85 < spread < 0.95  # 0.905 and 0.880
    assert (mean**2).sum() / network.rest.trace() > 0.5  # without the condition the bias is this
