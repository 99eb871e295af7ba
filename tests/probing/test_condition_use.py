"""Swapped conditions raise the error of a model that uses its condition, and of no other."""

import pytest
import torch
from torch import nn

import ldmprobe
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.models.conditioning import Conditioning
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.tracking.report import report_html
from tests.helpers import sd_scheduler
from tests.models.gaussian_images import EYE, SIZE, Exact, images
from tests.models.test_own_conditioning import KNOWN, LeftHalf


class Told(nn.Module):
    """The best denoiser of images that are the number that it is told, or 0 if it is blind, and noise of a variance."""

    def __init__(self, variance: float, blind: bool = False) -> None:
        super().__init__()
        self.schedule, self.variance, self.blind = as_schedule(sd_scheduler()), variance, blind
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z_t, t, condition):
        alpha, sigma = float(self.schedule.alpha[t[0]]), float(self.schedule.sigma[t[0]])
        mean = 0 if self.blind else alpha * condition["sign"].view(-1, 1, 1, 1)
        return (z_t[:, :1] - mean) * sigma / (alpha**2 * self.variance + sigma**2)


@pytest.fixture(scope="module")
def source() -> ldmprobe.ImageData:
    data = images()
    data.setup()
    return data


def record(source: ldmprobe.ImageData, network: nn.Module) -> ldmprobe.ProbeRecord:
    model = ldmprobe.DiffusionModel(network, sd_scheduler(), (1, SIZE, SIZE), conditioning=LeftHalf())
    held_out = HeldOut.encode(model.codec, model.conditioning, source.reference_batches(40, held_out=True))
    reference = LatentStatistics.fit(torch.cat([b["image"] for b in source.reference_batches(300)]), "identity")
    return probe_denoising(model, held_out, reference, num_draws=64)


def test_a_model_that_uses_its_condition_is_told_from_one_that_does_not(source):
    known = KNOWN.expand(SIZE, SIZE).flatten()
    best = Exact(EYE[known], torch.cat([EYE, 0 * EYE], dim=1)[known])  # reads the left half off the picture
    used, ignored = record(source, best), record(source, Told(0.05, blind=True))
    assert used.scalars["condition_use_z/LeftHalf"] > 5
    curve = used.curves["condition_use/LeftHalf"]
    assert curve.lower[:5].min() > 0.1  # in noise there is nothing but the condition
    assert ignored.scalars["condition_use_z/LeftHalf"] == 0
    assert not ignored.curves["condition_use/LeftHalf"].value.any()
    alarm = "The condition (LeftHalf) is ignored"
    assert alarm not in used.provenance["remarks"]
    assert alarm in ignored.provenance["remarks"]
    page = report_html([ignored], None, "run")
    assert page.count(alarm) >= 2  # in the header, and beside the chart
    assert "Is the condition used?" in page


class Sign(Conditioning):
    """A number."""

    def from_batch(self, batch):
        return {"sign": batch["sign"]}

    def for_samples(self, sample_ids):
        return {"sign": torch.ones(len(sample_ids))}

    def null(self, num_samples, device):
        return {"sign": torch.zeros(num_samples, device=device)}


def told(sign: torch.Tensor, number: torch.Tensor) -> ldmprobe.ProbeRecord:
    """A record of images of these signs, told these numbers."""
    noise = torch.randn(len(sign) + 100, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    held_out = HeldOut(sign.view(-1, 1, 1, 1) + 0.1 * noise[: len(sign)], {"sign": number})
    model = ldmprobe.DiffusionModel(Told(0.01), sd_scheduler(), (1, SIZE, SIZE), conditioning=Sign())
    return probe_denoising(model, held_out, LatentStatistics.fit(noise[len(sign) :], "identity"), num_draws=64)


def test_what_is_swapped_differs():
    """Of 40 images in turn of two kinds, number i + 20 is of the kind of number i."""
    sign = torch.tensor([1.0, -1.0]).repeat(20)
    used = told(sign, sign)
    assert used.scalars["condition_use_z/Sign"] > 5
    assert "ignored" not in used.provenance["remarks"]
    # The one image that differs is told that of the next, and they are told its own.
    one = torch.ones(40).index_fill(0, torch.tensor(3), -1.0)
    assert told(one, one).scalars["condition_use_z/Sign"] > 5


@pytest.mark.parametrize("images", [40, 4])
def test_of_a_condition_that_is_the_same_for_all_and_of_few_images_nothing_is_said(images):
    sign = torch.ones(images) if images > 8 else torch.tensor([1.0, -1.0]).repeat(images // 2)
    record = told(sign, sign)
    assert not [name for name in (*record.curves, *record.scalars) if name.startswith("condition_use")]
    assert "ignored" not in record.provenance["remarks"]


def test_what_is_uncertain_is_not_called_ignored():
    """Numbers that have nothing to do with the images, and that predictions hang on."""
    record = told(torch.ones(40), torch.randn(40, generator=torch.Generator().manual_seed(1)))
    assert record.scalars["condition_use_z/Sign"] < 5
    assert "ignored" not in record.provenance["remarks"]
