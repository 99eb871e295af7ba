"""What optimal denoisers of the training latents show in the sampling probe's two curves."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ldmprobe import (
    DDIM,
    DPMSolver,
    FromImages,
    IdealTwins,
    LatentStatistics,
    MarginalGap,
    Memorizer,
    Sampling,
    StepKL,
    probe_sampling,
)
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from tests.helpers import gaussian_model, refused, sd_scheduler
from tests.probing.gaussian import assert_same_record, clusters, copy_machine, on_ranks

SHAPE = (1, 4, 4)


@pytest.fixture(scope="module")
def reference():
    return LatentStatistics.fit(clusters(256, 0))


def analyses():
    return [StepKL(), MarginalGap(), IdealTwins()]


@pytest.mark.parametrize("sampler", [DDIM(eta=0.5), DPMSolver()])
def test_a_network_that_is_an_ideal_lies_on_its_curves(reference, sampler):
    model = copy_machine(reference.latents)
    curves = probe_sampling(model, reference, Sampling(64, 8, sampler, seed=3), analyses()).curves
    for name in ("step_kl", "marginal_gap"):
        own, twin = curves[name], curves[f"{name}_memorizer"]
        for end in ("value", "lower", "upper"):
            np.testing.assert_allclose(getattr(twin, end), getattr(own, end), rtol=1e-4, atol=1e-7)


def test_they_are_sampled_once_and_the_same_on_two_ranks(reference, monkeypatch):
    model, calls = gaussian_model(SHAPE, torch.float32), []
    posterior_mean = Memorizer.posterior_mean
    monkeypatch.setattr(
        Memorizer, "posterior_mean", lambda self, z, *level: calls.append(len(z)) or posterior_mean(self, z, *level)
    )
    first = probe_sampling(model, reference, Sampling(16, 4), analyses(), step=1)
    passes = len(calls)
    second = probe_sampling(model, reference, Sampling(16, 4), analyses(), step=2)
    assert len(calls) == passes == 4
    again = probe_sampling(model, reference, Sampling(16, 4, seed=1), analyses())
    assert len(calls) == 2 * passes
    for name in ("step_kl_memorizer", "marginal_gap_mixture"):
        np.testing.assert_array_equal(second.curves[name].value, first.curves[name].value)
        assert (again.curves[name].value != first.curves[name].value).all()

    def on_rank(ranks):
        own = LatentStatistics.fit(reference.latents)
        return probe_sampling(model, own, Sampling(16, 4), analyses(), step=1, ranks=ranks)

    for record in on_ranks(2, on_rank):
        assert_same_record(record, first, rtol=1e-5, atol=1e-9)


def test_there_are_none_where_samples_are_moved_by_design_or_without_real_latents(reference):
    model = gaussian_model(SHAPE, torch.float32)
    edited = Sampling(16, 4, start=FromImages(torch.rand(16, *SHAPE), 0.5))
    assert not [name for name in probe_sampling(model, reference, edited, analyses()).curves if "memorizer" in name]
    with refused("IdealTwins needs real latents"):
        probe_sampling(model, None, Sampling(8, 2), [IdealTwins()])


@pytest.mark.parametrize(
    "scheduler",
    [sd_scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True), FlowMatchEulerDiscreteScheduler()],
    ids=["zero terminal SNR", "flow"],
)
def test_they_are_finite_where_sampling_starts_without_signal(reference, scheduler):
    model = gaussian_model(SHAPE, torch.float32)
    model.schedule = as_schedule(scheduler)
    curves = probe_sampling(model, reference, Sampling(16, 4), analyses()).curves
    assert np.isfinite(curves["step_kl_memorizer"].value[:-1]).all()
