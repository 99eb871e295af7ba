"""Swapped conditions raise the error of a model that uses its condition, and of no other."""

import pytest
import torch
from torch import nn

import ldmprobe
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.tracking.report import report_html
from tests.helpers import sd_scheduler
from tests.models.test_own_conditioning import ExactDenoiser, LeftHalf, images

SIZE = 8


class Blind(nn.Module):
    """The linear denoiser of the whole image, whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.exact = ExactDenoiser()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z_t, t, condition):
        alpha, sigma = float(self.exact.schedule.alpha[t[0]]), float(self.exact.schedule.sigma[t[0]])
        return z_t[:, :1] * sigma / (alpha**2 * 0.05 + sigma**2)


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
    used, ignored = record(source, ExactDenoiser()), record(source, Blind())
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
