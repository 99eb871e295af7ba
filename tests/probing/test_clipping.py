"""A scheduler that clips x̂_0 is right for pixels in [−1, 1], and is told to be wrong for latents that reach
further."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.inference import sample_images
from ldmprobe.io.store import RecordStore
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics, magnitude_quantiles
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from ldmprobe.tracking.report import write_report
from tests.helpers import gaussian_model, tiny_unet
from tests.probing.gaussian import draw


def test_real_latents_beyond_the_range_are_counted_told_and_put_into_the_record(tmp_path):
    model = gaussian_model(clip_sample=True, clip_sample_range=0.5)
    latents = draw(model, 2000)
    network = model.network
    normal = torch.distributions.Normal(network.mean.detach(), network.variance.detach().sqrt())
    exact = 1 - float((normal.cdf(torch.tensor(0.5)) - normal.cdf(torch.tensor(-0.5))).mean())
    reference = LatentStatistics.fit(latents)
    reference.save(tmp_path / "reference.safetensors")
    kept = LatentStatistics.load(tmp_path / "reference.safetensors")
    with pytest.warns(UserWarning, match=r"clips to ±0.5, and \d+\.\d% of the entries of real latents \(up to \d"):
        clipped = probe_sampling(model, kept, Sampling(64, 10))
    assert clipped.provenance["clip_range"] == 0.5
    assert clipped.provenance["clipped_real"] == pytest.approx(exact, abs=0.01)  # standard error .002
    assert clipped.provenance["clipped_samples"] == pytest.approx(exact, abs=0.1)
    told, no_ideal = clipped.provenance["caveats"]
    assert told == clipped.provenance["clipping"]
    assert "no closed-form ideal curves, since a sampler that clips x̂_0, here to ±0.5" in no_ideal
    assert np.isnan(clipped.curves["step_kl_ideal"].value).all()
    assert clipped.scalars.keys().isdisjoint({"sampler_gap", "network_gap"})
    assert np.isfinite(clipped.curves["step_kl"].value).all()
    RecordStore(tmp_path).append(clipped)
    assert "<b>The DDIMScheduler clips to ±0.5, and " in Path(write_report(tmp_path)).read_text(encoding="utf-8")
    with pytest.warns(UserWarning, match="real latents"):
        without_reference = probe_sampling(model, None, Sampling(64, 10), held_out=HeldOut(latents.float(), {}))
    assert without_reference.provenance["clipped_real"] == pytest.approx(exact, abs=0.01)
    plain = probe_sampling(gaussian_model(), kept, Sampling(64, 10))
    assert "clip_range" not in plain.provenance
    assert plain.fingerprints["grid"] != clipped.fingerprints["grid"]


def test_pixels_within_the_range_are_no_fault():
    torch.manual_seed(0)
    model = DiffusionModel(tiny_unet(1).eval(), as_schedule(DDIMScheduler()), (1, 8, 8))
    pixels = torch.rand(64, 1, 8, 8).mul(255).round() / 127.5 - 1
    pixels[0] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = probe_sampling(model, LatentStatistics.fit(pixels), Sampling(8, 3))
        sample_images(model, Sampling(2, 2))
    assert record.provenance["clipped_real"] == 0
    assert ["no closed-form ideal" in caveat for caveat in record.provenance["caveats"]] == [True]


def test_samples_of_latents_are_told_by_their_own_numbers():
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), latent_channels=2, norm_num_groups=4)
    model = DiffusionModel(tiny_unet(2).eval(), as_schedule(DDPMScheduler()), (2, 8, 8), LatentCodec(vae))
    with pytest.warns(
        UserWarning, match=r"DDPMScheduler clips to ±1, and \d+\.\d% .*DDPMScheduler\(clip_sample=False\)"
    ):
        sample_images(model, Sampling(2, 3))


def test_quantiles_reach_from_the_smallest_magnitude_to_the_largest():
    quantiles = magnitude_quantiles(torch.arange(-100.0, 101.0).view(1, 1, 1, -1))
    assert (float(quantiles[0]), float(quantiles[100]), float(quantiles[-1])) == (0.0, 50.0, 100.0)
