"""Relevance: a fault put into one band of a perfect denoiser costs samples there, and nowhere else."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ldmprobe.analysis.bands import bands_of
from ldmprobe.models.guidance import ClassifierFreeGuidance
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.quality import images_and_features
from ldmprobe.probing.real_features import RealFeatures
from ldmprobe.probing.relevance import AnswersOf, probe_relevance
from ldmprobe.probing.sampling import Sampling
from tests.helpers import gaussian_model, refused
from tests.probing.gaussian import ScaledBand, draw, flow_model, v_model

SAMPLING, FEATURES = Sampling(256, 10), nn.Flatten()


@pytest.fixture(scope="module")
def found():
    model = gaussian_model()
    log_snr = model.schedule.log_snr.numpy()
    inside = np.flatnonzero((log_snr >= 0) & (log_snr < 3))
    other = replace(model, network=ScaledBand(model.network, int(inside[0]), int(inside[-1]) + 1, 1.2))
    held_out = HeldOut(draw(model, 256), {})
    real = RealFeatures.of(FEATURES, [draw(model, 512, seed=3).float().clamp(-1, 1)], torch.device("cpu"))
    return model, other, held_out, real, probe_relevance(model, other, held_out, real, FEATURES, SAMPLING, 128)


def test_a_fault_in_one_band_costs_samples_there_and_nowhere_else(found):
    record = found[-1]
    middle, rise = (record.curves[name].value for name in ("relevance_band", "relevance_fid"))
    faulty = middle == 1.5
    assert faulty.sum() == 1
    np.testing.assert_array_equal(rise[~faulty], 0)  # where both models give the same answer, samples are the same
    assert rise[faulty] == record.scalars["relevance_whole"] != 0  # and within the band they are the other's
    lost = record.curves["relevance_nats"]
    assert lost.lower[faulty] > 0
    np.testing.assert_array_equal(lost.value[~faulty], 0)
    worth = record.scalars["relevance_per_nat/logsnr+00"]
    assert worth == pytest.approx((rise[faulty] / lost.value[faulty]).item())
    assert [name for name in record.scalars if "per_nat" in name] == ["relevance_per_nat/logsnr+00"]
    assert rise[faulty] > record.scalars["relevance_whole_half_width"]
    assert "at log-SNR 0…+3" in record.provenance["summary"]


def test_answers_are_the_others_within_the_band_alone(found):
    model, other, *_ = found
    grid = SAMPLING.levels(model)

    def samples(of, guidance):
        sampling = replace(SAMPLING, guidance=guidance)
        with torch.no_grad():
            parts = images_and_features(of, FEATURES, torch.arange(32), sampling, grid)
            return torch.cat([images for images, _ in parts])

    plain = ClassifierFreeGuidance()
    everywhere = samples(model, AnswersOf(other, plain, -np.inf, np.inf))
    torch.testing.assert_close(everywhere, samples(other, plain), rtol=0, atol=0)
    band = next(band for band in bands_of(grid.log_snr.double().numpy()) if band.low == -3)
    torch.testing.assert_close(
        samples(model, AnswersOf(other, plain, band.low, band.high)), samples(model, plain), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("model", "first"),
    [(flow_model(), 1000), (v_model(rescale_betas_zero_snr=True, timestep_spacing="trailing"), 999)],
    ids=["flow matching", "zero terminal SNR"],
)
def test_a_level_without_signal_is_of_the_noisiest_band(model, first):
    other = replace(model, network=ScaledBand(model.network, first, first + 1, 1.2))
    real = RealFeatures.of(FEATURES, [draw(model, 128, seed=3).float().clamp(-1, 1)], torch.device("cpu"))
    record = probe_relevance(model, other, HeldOut(draw(model, 64), {}), real, FEATURES, Sampling(64, 10), 64)
    middle, rise = (record.curves[name].value for name in ("relevance_band", "relevance_fid"))
    assert np.isfinite(middle).all()
    assert (np.diff(middle) > 0).all()
    assert rise[0] == record.scalars["relevance_whole"] != 0
    np.testing.assert_array_equal(rise[1:], 0)
    assert len(record.curves["relevance_nats"].value) == len(middle)


def test_models_that_do_not_go_together_are_refused_before_anything_is_sampled(found):
    model, other, held_out, real, _ = found
    with refused("differ in prediction"):
        probe_relevance(model, v_model(), held_out, real, FEATURES, SAMPLING)
    encoding_otherwise = copy.deepcopy(other.conditioning)
    encoding_otherwise.register_parameter("encoder", nn.Parameter(torch.ones(1)))
    with refused("differ in text encoders"):
        probe_relevance(model, replace(other, conditioning=encoding_otherwise), held_out, real, FEATURES, SAMPLING)
    with refused("of another network"):
        probe_relevance(model, other, held_out, real, nn.Sequential(nn.Flatten()), SAMPLING)
