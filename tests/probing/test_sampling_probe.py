"""The DDIM probe as a whole: same answer whatever the batch, the ranks or the time of day, and the model untouched."""

import pytest
import torch

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.grids import ScheduleGrid
from ldmprobe.models.conditioning import ClassConditioning
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.guidance import ClassifierFreeGuidance
from ldmprobe.probing.analyses import StepKL
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.sampling import Sampling, sample_trajectory
from ldmprobe.probing.sampling_probe import probe_sampling
from tests.helpers import gaussian_model, refused, sd_scheduler, tiny_unet
from tests.probing.gaussian import assert_same_record, draw, exact_reference, on_ranks

SAME = {"rtol": 1e-5, "atol": 1e-9}


def unet_of_classes() -> DiffusionModel:
    torch.manual_seed(0)
    model = DiffusionModel(tiny_unet(num_class_embeds=4).eval(), as_schedule(sd_scheduler()), (2, 8, 8))
    model.conditioning = ClassConditioning(3)
    return model


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return gaussian_model()


@pytest.fixture(scope="module")
def reference(model: DiffusionModel) -> LatentStatistics:
    return exact_reference(model)


def test_record_says_what_it_was_measured_with(model: DiffusionModel, reference: LatentStatistics):
    record = probe_sampling(model, reference, Sampling(16, 5, grid=ScheduleGrid("trailing"), seed=3), step=70)
    assert (record.probe, record.step) == ("ddim", 70)
    expected = {
        "num_samples": 16,
        "num_steps": 5,
        "timestep_spacing": "trailing",
        "guidance_scale": 1.0,
        "seed": 3,
        "weights": "raw",
        "latent_shape": [2, 4, 4],
        "prediction_type": "epsilon",
        "reference_latents": reference.num_latents,
    }
    assert expected.items() <= record.provenance.items()
    assert record.fingerprints["reference"] == reference.fingerprint


def test_another_seed_is_another_probe(model: DiffusionModel, reference: LatentStatistics):
    first, second = (probe_sampling(model, reference, Sampling(64, 10, seed=seed)) for seed in (0, 1))
    assert first.curves["step_kl"].value.tolist() != second.curves["step_kl"].value.tolist()
    assert first.fingerprints["sampler"] != second.fingerprints["sampler"]


def test_without_a_reference_batches_and_ranks_agree_too(model: DiffusionModel):
    """With one: tests/probing/test_ranks.py."""
    alone = probe_sampling(model, None, Sampling(65, 10))
    for record in on_ranks(2, lambda ranks: probe_sampling(model, None, Sampling(65, 10, batch_size=7), ranks=ranks)):
        assert_same_record(record, alone, **SAME)


def test_samples_have_the_same_noise_and_condition_whatever_company_they_are_in():
    model = unet_of_classes()
    grid = model.schedule.native_grid(3)
    with torch.no_grad():
        *_, together = sample_trajectory(model, Sampling(8), grid, torch.arange(8))
        *_, alone = sample_trajectory(model, Sampling(8), grid, torch.tensor([5]))
        *_, chunked = sample_trajectory(model, Sampling(8, batch_size=3), grid, torch.arange(8))
    torch.testing.assert_close(alone.z_s[0], together.z_s[5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chunked.z_s, together.z_s, rtol=1e-4, atol=1e-5)
    record = probe_sampling(model, None, Sampling(8, 2), analyses=[StepKL()])
    assert record.provenance["sample_labels"] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_guidance_extrapolates_from_the_null_condition():
    model = unet_of_classes()
    torch.nn.init.normal_(model.network.class_embedding.weight)
    grid, ids = model.schedule.native_grid(1), torch.arange(8)
    with torch.no_grad():
        free, plain, strong = (
            next(sample_trajectory(model, Sampling(8, guidance=ClassifierFreeGuidance(scale)), grid, ids))
            for scale in (0.0, 1.0, 3.0)
        )
    assert (plain.epsilon - free.epsilon).abs().max() > 1e-3
    torch.testing.assert_close(strong.epsilon, free.epsilon + 3 * (plain.epsilon - free.epsilon), rtol=1e-4, atol=1e-5)


def test_progress_counts_the_steps_and_may_stop_the_probe(model: DiffusionModel):
    seen = []
    probe_sampling(model, None, Sampling(8, 4), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    model.network.train()
    with pytest.raises(KeyboardInterrupt):
        probe_sampling(model, None, Sampling(8, 4), progress=stop)
    assert model.network.training


def test_reference_of_other_latents_is_an_error(model: DiffusionModel):
    other = LatentStatistics.fit(draw(gaussian_model((1, 4, 4)), 20))
    with refused(r"shape \(1, 4, 4\), the model's are \(2, 4, 4\)"):
        probe_sampling(model, other)
