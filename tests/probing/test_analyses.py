"""What the analyses read off a trajectory, on Gaussian data where every answer is known."""

import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image

from ldmprobe.analysis.ideal import ideal_path
from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.diffusion.samplers import DDIM
from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses import Analysis, Findings, PCAScatter, SampleImages, StepKL, Trajectory, X0Drift
from ldmprobe.probing.analyses.samples import png_bytes
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from tests.helpers import FLOAT32, gaussian_model, refused
from tests.probing.gaussian import assert_same_record, exact_reference

NUM_SAMPLES, NUM_STEPS = 512, 50
WITHOUT_REFERENCE = {"passes", "step_kl", "step_kl_floor", "step_kl_reverse", "step_kl_js", "step_kl_softmax"}


class KeepSteps(Analysis):
    """Keeps everything, so that a test can compute from it."""

    def begin(self, trajectory: Trajectory) -> None:
        self.steps: list[SamplingStep] = []

    def update(self, step: SamplingStep) -> None:
        self.steps.append(step)

    def finish(self) -> Findings:
        return Findings()


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return gaussian_model()


@pytest.fixture(scope="module")
def kept() -> KeepSteps:
    return KeepSteps()


@pytest.fixture(scope="module")
def record(model: DiffusionModel, kept: KeepSteps) -> ProbeRecord:
    analyses = [StepKL(), PCAScatter(), SampleImages(12), kept]
    return probe_sampling(model, exact_reference(model), Sampling(NUM_SAMPLES, NUM_STEPS), analyses=analyses)


@pytest.fixture(scope="module")
def without_reference(model: DiffusionModel) -> ProbeRecord:
    return probe_sampling(model, None, Sampling(64, 10))


def test_step_kl_interval_is_narrow_enough_to_mean_something(record: ProbeRecord):
    curve, ideal = record.curves["step_kl"], record.curves["step_kl_ideal"].value
    assert np.median((curve.upper - curve.lower) / 2 / ideal) < 0.2


def test_closed_form_curves_are_those_of_the_grid(record: ProbeRecord, model: DiffusionModel):
    grid = model.schedule.native_grid(NUM_STEPS)
    mean, variance = model.network.mean.detach().flatten(), model.network.variance.detach().flatten()
    ideal = ideal_path(mean, variance, DDIM().program(grid), grid)
    np.testing.assert_allclose(record.curves["step_kl_ideal"].value, ideal.step_kl().mean(1).numpy(), rtol=1e-10)
    np.testing.assert_allclose(
        record.curves["step_kl_forward"].value, ideal.forward_step_kl().mean(1).numpy(), rtol=1e-10
    )


def test_reverse_kl_is_the_other_way_round(record: ProbeRecord, model: DiffusionModel):
    """Against the ideal KL(after ‖ before); about 5 % is the statistical error of the largest steps at N = 512."""
    grid = model.schedule.native_grid(NUM_STEPS)
    mean, variance = model.network.mean.detach().flatten(), model.network.variance.detach().flatten()
    i = ideal_path(mean, variance, DDIM().program(grid), grid)
    before, after = (torch.distributions.Normal(m, v.sqrt()) for m, v in ((i.mean_t, i.var_t), (i.mean_s, i.var_s)))
    expected = torch.distributions.kl_divergence(after, before).mean(1).numpy()
    found = record.curves["step_kl_reverse"].value
    large = np.argsort(-expected)[:10]
    np.testing.assert_allclose(found[large], expected[large], rtol=0.15)
    ratio = expected[large] / record.curves["step_kl_ideal"].value[large]
    assert ratio.max() < 0.95  # so that the directions could be told apart
    measured = found[large] / record.curves["step_kl"].value[large]
    np.testing.assert_allclose(measured, ratio, rtol=0.03)


def test_softmax_kl_curve_is_torchs_kl_div_between_the_latents_of_each_step(record: ProbeRecord, kept: KeepSteps):
    expected = [
        float(
            torch.nn.functional.kl_div(
                step.z_s.double().flatten(1).log_softmax(1),
                step.z_t.double().flatten(1).softmax(1),
                reduction="batchmean",
            )
        )
        for step in kept.steps
    ]
    np.testing.assert_allclose(record.curves["step_kl_softmax"].value, expected, rtol=1e-6, atol=1e-12)


def test_curves_lie_over_the_timesteps_going_in(record: ProbeRecord, model: DiffusionModel):
    grid = model.schedule.native_grid(NUM_STEPS)
    bands = {
        f"{name}/band{k}" for name in ("step_kl_ratio", "variance_ratio", "variance_ratio_ideal") for k in range(4)
    }
    assert set(record.curves) == WITHOUT_REFERENCE | {"step_kl_ideal", "step_kl_forward", "step_kl_ratio"} | bands
    for curve in record.curves.values():
        np.testing.assert_array_equal(curve.timestep, grid.timesteps.numpy())
        np.testing.assert_array_equal(curve.log_snr, grid.log_snr.numpy())


def test_without_reference_there_is_no_closed_form_and_the_basis_is_a_cosine_transform(
    without_reference: ProbeRecord, record: ProbeRecord
):
    assert set(without_reference.curves) == WITHOUT_REFERENCE | {"x0_drift"}
    assert without_reference.provenance["kl_basis"] == "dct"
    assert record.provenance["kl_basis"] == "pca"
    assert record.provenance["kl_dimension"] == without_reference.provenance["kl_dimension"] == 32


def test_scatters_show_six_levels_from_noise_to_the_final_latents(record: ProbeRecord, model: DiffusionModel):
    grid = model.schedule.native_grid(NUM_STEPS)
    for name, number in (("pca", NUM_SAMPLES), ("pca_real", 512)):
        scatters = record.scatters[name]
        assert [scatter.timestep for scatter in scatters] == [*grid.timesteps[[0, 10, 20, 30, 40]].tolist(), 0]
        assert all(scatter.xy.shape == (number, 2) for scatter in scatters)
    assert record.scatters["pca"][1].log_snr == pytest.approx(float(grid.log_snr[10]))
    assert record.scatters["pca"][-1].log_snr == pytest.approx(float(2 * (grid.alpha_s[-1] / grid.sigma_s[-1]).log()))


@pytest.mark.parametrize(("num_levels", "num_steps", "expected"), [(2, 50, 2), (6, 3, 4), (51, 50, 51), (6, 1, 2)])
def test_there_are_never_more_levels_than_latents(model, num_levels: int, num_steps: int, expected: int):
    analysis = PCAScatter(num_levels)
    found = probe_sampling(model, exact_reference(model), Sampling(8, num_steps), analyses=[analysis])
    assert len(found.scatters["pca"]) == len(found.scatters["pca_real"]) == expected


def test_scatter_points_are_the_latents_about_the_noised_mean(
    record: ProbeRecord, kept: KeepSteps, model: DiffusionModel
):
    grid, mean = model.schedule.native_grid(NUM_STEPS), model.network.mean.detach().flatten()
    for scatter, k in zip(record.scatters["pca"], [0, 10, 20, 30, 40], strict=False):
        expected = kept.steps[k].z_t.flatten(1).double() - grid.alpha_t[k] * mean
        np.testing.assert_allclose(scatter.xy, expected[:, :2].numpy(), rtol=1e-5, atol=1e-5)
    final = kept.steps[-1].z_s.flatten(1).double() - grid.alpha_s[-1] * mean
    np.testing.assert_allclose(record.scatters["pca"][-1].xy, final[:, :2].numpy(), rtol=1e-5, atol=1e-5)


def test_real_points_spread_like_the_forward_process(record: ProbeRecord, model: DiffusionModel):
    """Mean 0 and variance aλ + b, with standard errors √(v/512) and v√(2/511)."""
    grid, variance = model.schedule.native_grid(NUM_STEPS), model.network.variance.detach().flatten()[:2].numpy()
    levels = [*zip(grid.alpha_t[::10], grid.sigma_t[::10], strict=True), (grid.alpha_s[-1], grid.sigma_s[-1])]
    for scatter, (alpha, sigma) in zip(record.scatters["pca_real"], levels, strict=True):
        v = float(alpha) ** 2 * variance + float(sigma) ** 2
        assert (np.abs(scatter.xy.mean(0)) < 4 * np.sqrt(v / 512)).all()
        assert (np.abs(scatter.xy.var(0) - v) < 4 * v * np.sqrt(2 / 511)).all()


def test_explained_shares_are_those_of_real_latents(record: ProbeRecord, model: DiffusionModel):
    variance = model.network.variance.detach().flatten()
    for k in (0, 1):
        assert record.scalars[f"pca_explained_{k + 1}"] == pytest.approx(float(variance[k] / variance.sum()))


def test_without_reference_the_components_are_those_of_the_final_samples(
    without_reference: ProbeRecord, record: ProbeRecord
):
    assert "pca_real" not in without_reference.scatters
    assert without_reference.provenance["pca_basis"] == "own final samples"
    assert record.provenance["pca_basis"] == "real latents"
    final = without_reference.scatters["pca"][-1].xy
    assert abs(np.corrcoef(final.T)[0, 1]) < 1e-4  # principal components of the very same points
    total = sum(without_reference.scalars[f"pca_explained_{k}"] for k in (1, 2))
    assert 0 < total < 1


def test_samples_that_are_not_finite_have_no_components_of_their_own(model: DiffusionModel):
    broken = DiffusionModel(copy.deepcopy(model.network), model.schedule, model.latent_shape)
    torch.nn.init.constant_(broken.network.mean, torch.nan)
    assert not probe_sampling(broken, None, Sampling(8, 2), analyses=[PCAScatter()]).scatters


def test_sample_images_are_the_first_samples_as_png(record: ProbeRecord, kept: KeepSteps):
    final = kept.steps[-1].z_s
    assert len(record.images["samples"]) == 12
    for i, png in enumerate(record.images["samples"]):
        image = Image.open(io.BytesIO(png))
        assert (image.format, image.size, image.mode) == ("PNG", (4, 4), "L")
        expected = (final[i, 0].clamp(-1, 1).double() + 1) * 127.5
        assert np.abs(np.asarray(image, dtype=float) - expected.numpy()).max() <= 0.501


def test_there_are_no_more_images_than_samples(model: DiffusionModel):
    assert len(probe_sampling(model, None, Sampling(8, 2), analyses=[SampleImages(20)]).images["samples"]) == 8


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGBA"), (5, "L")])
def test_png_keeps_pixels_in_place(channels: int, mode: str):
    image = torch.rand(channels, 3, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = Image.open(io.BytesIO(png_bytes(image)))
    assert (picture.mode, picture.size) == (mode, (5, 3))
    shown = image if mode in ("RGB", "RGBA") else image[:1]
    pixels = np.asarray(picture, dtype=float).reshape(3, 5, -1).transpose(2, 0, 1)
    np.testing.assert_allclose(pixels / 127.5 - 1, shown.numpy(), atol=0.5 / 127.5 + 1e-6)


def test_png_clips_and_survives_values_that_are_not_finite():
    image = torch.tensor([[[-5.0, 5.0, float("nan"), float("inf")]]])
    assert np.asarray(Image.open(io.BytesIO(png_bytes(image)))).tolist() == [[0, 255, 128, 255]]


def test_an_analysis_can_be_used_again(model: DiffusionModel, without_reference: ProbeRecord):
    analyses = [StepKL(), PCAScatter(), X0Drift(), SampleImages()]
    probe_sampling(model, exact_reference(model), Sampling(8, 3), analyses=analyses)
    assert_same_record(probe_sampling(model, None, Sampling(64, 10), analyses=analyses), without_reference)


def test_first_latents_are_the_samples_own_noise(kept: KeepSteps, record: ProbeRecord):
    torch.testing.assert_close(
        kept.steps[0].z_t.float(), sample_noise(range(NUM_SAMPLES), (2, 4, 4), seed=0), **FLOAT32
    )


def test_too_few_levels_and_no_images_are_errors():
    with refused("num_levels 1; expected at least 2"):
        PCAScatter(1)
    with refused("num_images 0; expected at least 1"):
        SampleImages(0)
