"""Samples that start from images (SDEdit): the same strength on every grid, and exactly where a Gaussian's path leads."""

import pytest
import torch

from ldmprobe import DDIM, FromImages, LatentCodec, LogSNRGrid, Sampling, ScheduleGrid
from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.sampling import sample_trajectory
from ldmprobe.probing.sampling_probe import probe_sampling
from tests.helpers import gaussian_model, refused
from tests.probing.gaussian import exact_reference

IMAGES = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
IDS = torch.arange(6)


@pytest.fixture
def model():
    return gaussian_model()


def ends(model, log_snr: float, num_steps: int = 20, grid=None):
    """The grid that is left, and the first and last latents of the samples."""
    start = {} if log_snr is None else {"start": FromImages(IMAGES, log_snr)}
    sampling = Sampling(len(IDS), num_steps, DDIM(), grid or LogSNRGrid(), seed=2, **start)
    levels = sampling.levels(model)
    with evaluating(model.modules):
        steps = list(sample_trajectory(model, sampling, levels, IDS))
    return levels, steps[0].z_t, steps[-1].z_s


@pytest.mark.parametrize("grid", [LogSNRGrid(), ScheduleGrid("trailing")], ids=["log-snr", "schedule"])
@pytest.mark.parametrize("log_snr", [-3.0, 0.0, 2.5])
def test_a_strength_is_the_level_that_it_says_and_leads_where_a_gaussians_path_leads(model, log_snr, grid):
    """The exact denoiser's DDIM takes z − αμ to itself times Π (α_s α_t ℓ + σ_s σ_t)/(α_t² ℓ + σ_t²)."""
    whole = grid.levels(model.schedule, 20)
    levels, first, last = ends(model, log_snr, grid=grid)
    assert float(levels.log_snr[0]) == pytest.approx(log_snr, abs=1e-9)
    assert levels.num_steps == 1 + int((whole.log_snr > log_snr).sum())
    alpha, sigma = float(levels.alpha_t[0]), float(levels.sigma_t[0])
    noise = sample_noise(IDS.tolist(), model.latent_shape, 2).double()
    expected = alpha * IMAGES[IDS % 3].float() + sigma * noise  # sample i from image i mod 3, with its own noise
    torch.testing.assert_close(first.double(), expected.double(), rtol=1e-5, atol=1e-6)
    mean, variance = model.network.mean.detach(), model.network.variance.detach()
    factor = torch.ones_like(mean)
    for a_t, s_t, a_s, s_s in zip(levels.alpha_t, levels.sigma_t, levels.alpha_s, levels.sigma_s, strict=True):
        factor = factor * (a_s * a_t * variance + s_s * s_t) / (a_t**2 * variance + s_t**2)
    end = float(levels.alpha_s[-1]) * mean + factor * (first.double() - alpha * mean)
    torch.testing.assert_close(last.double(), end, rtol=1e-4, atol=1e-4)


def test_the_noisiest_level_ignores_the_image_and_the_cleanest_returns_it(model):
    plain, noisiest, cleanest = None, float(model.schedule.log_snr[-1]), float(model.schedule.log_snr[0])
    expected = ends(model, plain)[2]
    for log_snr in (noisiest, noisiest - 3, -float("inf")):
        assert torch.equal(ends(model, log_snr)[2], expected)
    levels, _, returned = ends(model, cleanest)
    assert levels.num_steps == 1
    assert (returned - IMAGES[IDS % 3]).abs().max() < 5 * float(levels.sigma_t[0])
    distances = [float((ends(model, s)[2] - IMAGES[IDS % 3]).square().mean()) for s in (-4.0, -1.0, 2.0, 5.0)]
    assert distances == sorted(distances, reverse=True)


def test_a_probe_of_changed_images_has_no_ideal_and_says_from_what_it_starts(model):
    sampling = Sampling(8, 4, grid=LogSNRGrid(), start=FromImages(IMAGES, 0.0))
    record = probe_sampling(model, exact_reference(model), sampling)
    assert record.curves["step_kl_ideal"].value[0] != record.curves["step_kl_ideal"].value[0]  # NaN
    assert record.provenance["start"].endswith(" at log-SNR 0")
    assert "a start from images shifts the marginals by design" in record.provenance["caveats"][0]
    plain = Sampling(8, 4, grid=LogSNRGrid())
    grid = plain.levels(model)
    assert sampling.fingerprints(model, grid)["sampler"] != plain.fingerprints(model, grid)["sampler"]


def test_what_cannot_be_started_from_is_refused(model):
    with refused(r"images of shape \(2, 4, 4\); expected \(K, C, H, W\)"):
        FromImages(IMAGES[0], 0.0)
    with refused("log_snr nan; expected the level to start from"):
        FromImages(IMAGES, float("nan"))
    with refused(r"images of shape \(2, 4, 4\); the model's are \(2, 8, 8\)"):
        wide = gaussian_model((2, 8, 8))
        wide.codec = LatentCodec()
        ends(wide, 0.0)
    with refused("a level at 40 is asked for"):
        ends(model, 40.0)
