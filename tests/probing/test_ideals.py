"""The denoising probe beside its ideals: twins on the same draws, run once."""

import numpy as np
import pytest
import torch

from ldmprobe import DiffusionModel, HeldOut, LatentStatistics, Memorizer, probe_denoising
from ldmprobe.probing.judge import judge
from ldmprobe.probing.verdict import State
from tests.helpers import gaussian_model
from tests.probing.gaussian import clusters, copy_machine

SHAPE = (1, 4, 4)


@pytest.fixture(scope="module")
def reference():
    return LatentStatistics.fit(clusters(256, 0))


def test_a_network_that_is_an_ideal_has_no_excess_over_it(reference, tmp_path):
    model, held_out = copy_machine(reference.latents), HeldOut(clusters(64, 1), {})
    record = probe_denoising(model, held_out, reference, 64)
    own, skill = record.curves["excess_over/memorizer"], record.curves["ideal_skill"]
    np.testing.assert_allclose(own.value, 0, atol=1e-5)
    assert (skill.value >= np.maximum(record.curves["denoising_skill"].value, 0) - 1e-6).all()
    # The mixture knows that clusters have a width, which shows where there is little noise.
    assert (record.curves["excess_over/mixture"].value[-3:] > 0.05).all()
    # A resumed run has the reference from disk, latents and all.
    reference.save(tmp_path / "reference.safetensors")
    again = probe_denoising(model, held_out, LatentStatistics.load(tmp_path / "reference.safetensors"), 64)
    np.testing.assert_array_equal(again.curves["excess_over/mixture"].value, record.curves["excess_over/mixture"].value)


def test_the_ideals_are_run_once(reference, monkeypatch):
    model, held_out = gaussian_model(SHAPE, torch.float32), HeldOut(clusters(64, 2), {})
    first = probe_denoising(model, held_out, reference, 64, step=1)
    monkeypatch.setattr(Memorizer, "posterior_mean", None)
    second = probe_denoising(model, held_out, reference, 64, step=2)
    np.testing.assert_array_equal(first.curves["ideal_skill"].value, second.curves["ideal_skill"].value)


def test_the_ideals_of_other_held_out_images_are_others(reference):
    model, held_out = copy_machine(reference.latents), HeldOut(clusters(128, 3), {})
    replaced = HeldOut(torch.cat([held_out.latents[:64], clusters(64, 4)]), {})
    swapped = HeldOut(torch.cat([held_out.latents[:64], held_out.latents[64:].flip(0)]), {})
    records = [
        probe_denoising(model, each, reference, 64) for each in (held_out, held_out.first(96), replaced, swapped)
    ]
    for record in records:
        np.testing.assert_allclose(record.curves["excess_over/memorizer"].value, 0, atol=1e-5)
    assert len({record.fingerprints["held_out"] for record in records}) == 4


def test_the_best_linear_denoiser_of_clusters_is_left_behind_for_an_ideal_is_better(reference):
    """It passes every other test: a linear correction removes nothing of it."""
    mean, covariance = reference.latents.flatten(1).double().mean(0), torch.cov(reference.latents.flatten(1).double().T)
    values, directions = torch.linalg.eigh(covariance)
    model = gaussian_model(SHAPE, torch.float64)

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = torch.nn.Parameter(torch.zeros(1))

        def forward(self, z, t, condition):
            alpha, sigma = model.schedule.levels(t[:1], z[:1].double().flatten(1))
            along = (z.double().flatten(1) - alpha * mean) @ directions / (alpha**2 * values + sigma**2)
            return (sigma * along @ directions.T).view_as(z).to(z.dtype)

    linear = DiffusionModel(Linear(), model.schedule, SHAPE)
    held_out = HeldOut(clusters(128, 3), {})
    records = [probe_denoising(linear, held_out, reference, 128, step=step) for step in (1, 2)]
    verdict = judge(records)
    assert verdict.state is State.AT_FAULT
    assert 0.2 * verdict.bound < verdict.recoverable < verdict.bound
    assert "needs no network" in records[0].provenance["summary"]


@pytest.mark.parametrize("seen", [0, 1, 64])
def test_held_out_images_that_training_sees_tell_nothing(reference, seen):
    """They have no ideals, for a copy machine would be one, and no verdict is all clear by them."""
    model, held_out = copy_machine(reference.latents), torch.cat([reference.latents[:seen], clusters(64 - seen, 1)])
    records = [probe_denoising(model, HeldOut(held_out, {}), reference, 64, step=step) for step in (100, 200)]
    verdict = judge(records)
    assert ("ideal_skill" in records[-1].curves) == (seen == 0)
    assert records[-1].provenance["held_out_in_reference"] == seen / 64
    assert ("training images" in records[-1].provenance["remarks"]) == (seen > 0)
    assert verdict.state is (State.CANNOT_SAY if seen == 64 else State.BROKEN)
    if seen == 64:
        assert "100% are training images" in verdict.sentence
        assert "no training split" in verdict.action
