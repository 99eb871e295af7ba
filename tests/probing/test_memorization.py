"""How much is known by heart: of a perfect copy machine all, of a perfect denoiser nothing."""

import numpy as np
import pytest
import torch

from ldmprobe import DiffusionModel, HeldOut, LatentStatistics, Memorizer, probe_denoising, probe_memorization
from ldmprobe.probing.judge import judge
from ldmprobe.probing.verdict import State
from tests.helpers import gaussian_model, refused
from tests.probing.gaussian import assert_same_record, copy_machine, draw, on_ranks

SHAPE = (1, 4, 4)


@pytest.fixture(scope="module")
def data():
    """A perfect denoiser of Gaussian data, rows of them that it may have been trained on, and others."""
    model = gaussian_model(SHAPE, torch.float32)
    latents = draw(model, 512)
    return model, HeldOut(latents[:128], {}), HeldOut(latents[384:], {}), LatentStatistics.fit(latents[:384])


def verdict_on(model, held_out, reference, record):
    denoising = [probe_denoising(model, held_out, reference, 128, step=step) for step in (0, 1, 2)]
    return judge([*denoising, record])


def test_a_perfect_copy_machine_knows_everything_by_heart(data):
    _, training, held_out, reference = data
    model = copy_machine(reference.latents)
    record = probe_memorization(model, training, held_out, reference, 256, step=2)
    defined = np.isfinite(record.curves["memorization"].value)
    assert defined.sum() >= 8
    np.testing.assert_allclose(record.curves["memorization"].value[defined], 1, atol=1e-4)
    assert record.scalars["memorized"] == pytest.approx(1, abs=1e-4)
    assert record.provenance["num_known"] == 384  # the rows that are probed are among the reference's
    verdict = verdict_on(model, held_out, reference, record)
    assert verdict.state in (State.MEMORIZING, State.BROKEN)  # on unseen images it is worse than no network at all
    assert State.MEMORIZING in {band.state for band in verdict.bands}


def test_a_perfect_denoiser_knows_nothing_by_heart(data):
    model, training, held_out, reference = data
    record = probe_memorization(model, training, held_out, reference, 256, step=2)
    curve = record.curves["memorization"]
    defined = np.isfinite(curve.value)
    assert defined.sum() >= 8
    assert np.abs(curve.value[defined]).max() < 0.15
    assert (curve.lower[defined] < 0.05).all()
    assert abs(record.scalars["memorized"]) < record.scalars["memorized_half_width"] < 0.1
    assert "No memorization is measurable" in record.provenance["summary"]
    verdict = verdict_on(model, held_out, reference, record)
    assert State.MEMORIZING not in {verdict.state, *(band.state for band in verdict.bands)}


@pytest.mark.parametrize(("part", "by_heart"), [(0.03, False), (0.05, True)])
def test_what_is_known_by_heart_is_to_the_record_what_it_is_to_the_verdict(data, part, by_heart):
    like, training, held_out, reference = data

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memorizer, self.perfect = Memorizer(reference.latents, like.schedule), like.network

        def forward(self, z, t, condition):
            return part * self.memorizer(z, t, condition) + (1 - part) * self.perfect(z, t, condition)

    model = DiffusionModel(Mixed(), like.schedule, SHAPE)
    record = probe_memorization(model, training, held_out, reference, 256, step=2)
    assert 0 < record.scalars["memorized"] - record.scalars["memorized_half_width"] < 0.2
    said = "by heart at some noise levels" if by_heart else "better than others, but not by heart"
    assert said in record.provenance["summary"]
    bands = verdict_on(model, held_out, reference, record).bands
    assert (State.MEMORIZING in {band.state for band in bands}) == by_heart


def test_ranks_share_the_draws_and_what_is_not_held_out_is_refused(data):
    model, training, held_out, reference = data

    def probe(ranks=None):
        return probe_memorization(model, training, held_out, reference, 33, ranks=ranks)

    for found in on_ranks(2, probe):
        assert_same_record(found, probe(), rtol=1e-6)
    with refused("held_out_fraction"):
        probe_memorization(model, training, training, reference)
