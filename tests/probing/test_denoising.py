"""The denoising probe on Gaussian data, where the best linear denoiser is the best of all: skill 0 at every level."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t
from torch import Tensor, nn

from ldmprobe.analysis.bands import range_name
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.diffusion.prediction import KINDS
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import ClassConditioning
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import HeldOut, log_snr_grid, probe_denoising
from ldmprobe.probing.denoising_record import levels_of
from ldmprobe.probing.latent_statistics import LatentStatistics
from tests.helpers import gaussian_model, refused
from tests.probing.gaussian import assert_same_record, draw, exact_reference, faulty

NUM_LATENTS = 512
SAME = {"rtol": 1e-5, "atol": 1e-6}


class AsPrediction(nn.Module):
    """An ε-denoiser restated as one of another prediction type."""

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, prediction_type: str) -> None:
        super().__init__()
        self.network, self.schedule, self.prediction_type = network, schedule, prediction_type

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        alpha, sigma = self.schedule.levels(t, z_t)
        epsilon = self.network(z_t, t, condition)
        return KINDS[self.prediction_type].target((z_t - sigma * epsilon) / alpha, epsilon, alpha, sigma)


def shifted() -> DiffusionModel:
    """The perfect model with .05 added to its answer."""
    model = gaussian_model()
    model.network.register_forward_hook(lambda module, inputs, answer: answer + 0.05)
    return model


def probe(model: DiffusionModel, **arguments) -> ProbeRecord:
    perfect = gaussian_model()
    held_out = HeldOut(draw(perfect, NUM_LATENTS, seed=5), {})
    return probe_denoising(model, held_out, exact_reference(perfect), **arguments)


@pytest.fixture(scope="module")
def perfect() -> ProbeRecord:
    return probe(gaussian_model())


def test_mse_of_a_perfect_model_is_what_its_own_errors_average_to(perfect: ProbeRecord):
    model = gaussian_model()
    curve = perfect.curves["denoising_mse"]
    assert curve.timestep.tolist() == log_snr_grid(model).tolist()
    np.testing.assert_allclose(curve.log_snr, model.schedule.log_snr[curve.timestep].numpy(), rtol=1e-12)
    # In closed form, averaged over data and noise: mean of aλ/(aλ + b).
    a = model.schedule.alpha[curve.timestep].numpy()[:, None] ** 2
    signal = a * model.network.variance.detach().numpy().reshape(1, -1)
    closed_form = (signal / (signal + 1 - a)).mean(1)
    np.testing.assert_allclose(perfect.curves["denoising_mmse"].value, closed_form, rtol=1e-6)
    np.testing.assert_allclose(curve.value, closed_form, rtol=0.1)


def test_the_four_curves_hang_together(perfect: ProbeRecord):
    mse, mmse, skill, nats = (perfect.curves[f"denoising_{name}"] for name in ("mse", "mmse", "skill", "nats"))
    per_level = nats_per_error(mse.log_snr, 32)
    np.testing.assert_allclose(skill.value, 1 - mse.value / mmse.value, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(nats.value, per_level * (mmse.value - mse.value), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(nats.upper - nats.lower, per_level * (mse.upper - mse.lower), rtol=1e-9)
    assert perfect.scalars["denoising_bound_nats"] == pytest.approx(per_level @ mse.value)
    assert perfect.provenance["log_snr_range"] == [mse.log_snr[0], mse.log_snr[-1]]
    np.testing.assert_array_equal(mmse.lower, mmse.upper)  # of a reference that is known exactly


@pytest.mark.parametrize(("start", "stop"), [(0, 150), (300, 600), (700, 1000)])
def test_scaling_epsilon_in_a_band_lowers_skill_there_and_nowhere_else(perfect: ProbeRecord, start: int, stop: int):
    found, before = (each.curves["denoising_skill"] for each in (probe(faulty(start, stop)), perfect))
    inside = (found.timestep >= start) & (found.timestep < stop)
    assert 0 < inside.sum() < len(inside)
    np.testing.assert_array_equal(found.value[~inside], before.value[~inside])
    # E‖1.5 ε* − ε‖² = MMSE + ¼ E‖ε*‖² and E‖ε*‖² = 1 − MMSE, so that skill falls to −¼ (1 − MMSE)/MMSE.
    mmse = perfect.curves["denoising_mmse"].value[inside]
    half_width = (found.upper - found.lower)[inside] / 2
    assert (np.abs(found.value[inside] + 0.25 * (1 - mmse) / mmse) < 3 / 1.96 * half_width).all()


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_prediction_type_does_not_matter(perfect: ProbeRecord, prediction_type: str):
    model = gaussian_model(prediction_type=prediction_type)
    model.network = AsPrediction(model.network, model.schedule, prediction_type)
    assert_same_record(probe(model), perfect, **SAME)


def test_held_out_joins_batches_with_their_conditions():
    images, labels = torch.rand(10, 1, 4, 4), torch.arange(10)
    batches = [{"image": i, "label": l} for i, l in zip(images.split(4), labels.split(4), strict=True)]
    held_out = HeldOut.encode(LatentCodec(scale=2.0), ClassConditioning(10), batches)
    torch.testing.assert_close(held_out.latents, 2 * images)
    assert held_out.condition["class_labels"].tolist() == list(range(10))


@pytest.fixture(scope="module")
def many() -> ProbeRecord:
    return probe(gaussian_model(), num_draws=4096)


def test_calibration_of_a_perfect_model_is_0_within_its_interval(many: ProbeRecord):
    """The interval is 2.365 standard errors, and fitting two numbers to nothing costs 16/(7n). Of 512 draws:
    test_prediction_types.py."""
    residual, mse, cost = many.curves["calibration_residual"], many.curves["denoising_mse"], 16 / 7 / 4096
    half_width = (residual.upper - residual.lower) / 2
    assert (half_width > 0).all()
    assert (np.abs(residual.value + cost) < half_width).mean() >= 0.8
    assert (residual.lower < 0).all()
    assert (np.abs(residual.value) < 2 * half_width + cost).all()
    nats = many.curves["calibration_nats"]
    per_level = nats_per_error(nats.log_snr, 32)
    np.testing.assert_allclose(nats.value, per_level * residual.value * mse.value, rtol=1e-6)
    np.testing.assert_allclose(nats.upper - nats.lower, per_level * mse.value * 2 * half_width, rtol=1e-6)


def test_a_perfect_model_is_accused_in_one_probe_of_twenty_at_most(perfect: ProbeRecord, many: ProbeRecord):
    """Independent held-out latents and noise: of 14 probes 2 or fewer with probability .97, at a rate of 5 %."""
    model = gaussian_model()
    found = [perfect, many]
    for seed in range(12):
        held_out = HeldOut(draw(model, 256, seed=100 + seed), {})
        found.append(probe_denoising(model, held_out, exact_reference(model), num_draws=256, seed=seed))
    accused = [
        record
        for record in found
        if not record.provenance["summary"].startswith("No noise level has a measurable fault")
        or "Measurable" in record.provenance["remarks"]
    ]
    assert len(accused) <= 2


@pytest.mark.parametrize(("factor", "word"), [(1.05, "large"), (0.95, "small")])
def test_five_percent_in_a_band_are_the_headline_of_a_single_run(factor: float, word: str):
    record = probe(faulty(300, 600, factor))
    gain = record.curves["prediction_gain"]
    inside = gain.log_snr[(gain.timestep >= 300) & (gain.timestep < 600)]
    expected = f"Predictions are too {word} at log-SNR {range_name(inside[0], inside[-1])}, gain "
    assert record.provenance["summary"].startswith(expected)


@pytest.mark.parametrize("factor", [1.5, 2.0])  # of a gain of ½ the formula for older records tells nothing
def test_what_a_wrong_gain_weighs_is_by_the_square_of_predictions(perfect: ProbeRecord, factor: float):
    record = probe(faulty(300, 600, factor))
    levels = levels_of(record)
    inside = (record.curves["denoising_mse"].timestep >= 300) & (record.curves["denoising_mse"].timestep < 600)
    truth = 1 - perfect.curves["denoising_mmse"].value
    np.testing.assert_allclose(levels.square, np.where(inside, factor**2, 1) * truth, rtol=0.1, atol=0.01)
    del record.curves["prediction_square"]
    if factor == 1.5:
        np.testing.assert_allclose(levels_of(record).square[inside], levels.square[inside], rtol=0.05)


def test_a_shift_is_the_headline_of_a_single_run_and_is_far_above_chance(perfect: ProbeRecord):
    record = probe(shifted())
    assert record.provenance["summary"].startswith("Predictions are shifted at ")
    offset, floor = (record.curves[name].value for name in ("prediction_offset", "prediction_offset_floor"))
    assert (offset > 2.5 * floor).mean() > 0.8
    # Of a calibrated denoiser the floor is the root mean square: of two channels at 17 levels that share their draws.
    calm, floor = (perfect.curves[name].value for name in ("prediction_offset", "prediction_offset_floor"))
    assert 0.3 < np.sqrt((calm**2).mean() / (floor**2).mean()) < 2


@pytest.mark.parametrize(("start", "stop"), [(300, 600), (700, 1000)])
def test_scaling_epsilon_by_5_percent_raises_calibration_there_and_nowhere_else(
    many: ProbeRecord, start: int, stop: int
):
    """E‖1.05 ε* − ε‖² = MMSE + .0025 (1 − MMSE), the last term being what a linear correction removes."""
    record = probe(faulty(start, stop, 1.05), num_draws=4096)
    found, before = record.curves["calibration_residual"], many.curves["calibration_residual"]
    inside = (found.timestep >= start) & (found.timestep < stop)
    assert 0 < inside.sum() < len(inside)
    np.testing.assert_array_equal(found.value[~inside], before.value[~inside])
    assert (found.lower[inside] > 0).all()
    mmse = many.curves["denoising_mmse"].value[inside]
    share = 0.0025 * (1 - mmse) / (mmse + 0.0025 * (1 - mmse))
    half_width = (found.upper - found.lower)[inside] / 2
    assert (np.abs(found.value[inside] - share) < 4 / 2.365 * half_width).all()
    worst = max((name for name in record.scalars if "imbalance_share" in name), key=record.scalars.get)
    low = float(worst.split("logsnr")[1])
    in_band = (found.log_snr >= low) & (found.log_snr < low + 3)
    assert inside[in_band].any()


def test_gain_and_offset_of_a_perfect_model_are_1_and_0(many: ProbeRecord):
    gain, offset = many.curves["prediction_gain"], many.curves["prediction_offset"]
    assert (np.abs(gain.value - 1) < 1.5 * (gain.upper - gain.value)).all()
    assert (np.abs(gain.value - 1) < gain.upper - gain.value).mean() >= 0.8
    # A root mean square over two channels of something whose standard error is half_width/1.96.
    assert (offset.value < 2 * (offset.upper - offset.value)).all()


def test_gain_and_offset_show_a_factor_and_a_shift_where_they_are(many: ProbeRecord):
    scaled = probe(faulty(300, 600, 1.05), num_draws=4096)
    before, after = (record.curves["prediction_gain"] for record in (many, scaled))
    inside = (after.timestep >= 300) & (after.timestep < 600)
    np.testing.assert_allclose(after.value[inside], before.value[inside] / 1.05, rtol=1e-6)
    np.testing.assert_array_equal(after.value[~inside], before.value[~inside])
    offset = probe(shifted(), num_draws=4096).curves["prediction_offset"]
    assert (np.abs(offset.value - 0.05) < 2 * (offset.upper - offset.value)).all()
    assert (offset.lower > 0).all()


def test_shares_of_the_bands_sum_to_one_and_gini_agrees():
    record = probe(faulty(0, 1000, 1.2))
    shares = np.array([value for name, value in record.scalars.items() if name.startswith("imbalance_share/")])
    assert len(shares) >= 4
    assert shares.sum() == pytest.approx(1)
    relative_difference = np.abs(shares[:, None] - shares).mean() / (2 * shares.mean())
    assert record.scalars["imbalance_gini"] == pytest.approx(relative_difference)


def test_per_sample_errors_are_those_of_each_draw(perfect: ProbeRecord):
    model = gaussian_model()
    each = perfect.per_sample["denoising_errors"]
    noise = sample_noise(range(NUM_LATENTS), (2, 4, 4), seed=0, stream=1).double()
    z0 = draw(model, NUM_LATENTS, seed=5)
    assert each.value.shape == (len(each.timestep), NUM_LATENTS)
    for k in (0, len(each.timestep) // 2, -1):
        t = torch.full((NUM_LATENTS,), int(each.timestep[k]))
        with torch.no_grad():
            epsilon = model.network(model.schedule.add_noise(z0, noise, t), t, {})
        expected = (epsilon - noise).pow(2).flatten(1).mean(1)
        np.testing.assert_allclose(each.value[k], expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(each.value.mean(1), perfect.curves["denoising_mse"].value, rtol=1e-12)


def test_progress_is_the_paired_difference_of_two_records_in_nats():
    worse = probe(faulty(300, 600, 1.2), step=100)
    record = probe(gaussian_model(), step=200, previous=worse)
    found = record.curves["denoising_progress"]
    gain = worse.per_sample["denoising_errors"].value - record.per_sample["denoising_errors"].value
    nats = nats_per_error(found.log_snr, 32)
    np.testing.assert_allclose(found.value, nats * gain.mean(1), rtol=1e-9, atol=1e-12)
    # One draw per image: the ordinary standard error of the mean.
    half_width = nats * student_t.ppf(0.975, NUM_LATENTS - 1) * gain.std(1, ddof=1) / NUM_LATENTS**0.5
    np.testing.assert_allclose((found.upper - found.lower) / 2, half_width, rtol=1e-6, atol=1e-12)
    inside = (found.timestep >= 300) & (found.timestep < 600)
    assert (found.lower[inside] > 0).all()
    assert (found.value[~inside] == 0).all()
    assert record.provenance["progress_since_step"] == 100


def test_progress_is_only_told_of_an_earlier_comparable_record(perfect: ProbeRecord):
    assert "denoising_progress" not in perfect.curves
    assert perfect.provenance["progress_since_step"] is None
    other_noise = probe(gaussian_model(), seed=1)
    for previous, step in ((perfect, 0), (replace(perfect, step=7), 5), (other_noise, 10)):
        record = probe(gaussian_model(), step=step, previous=previous)
        assert "denoising_progress" not in record.curves
        assert record.provenance["progress_since_step"] is None


def test_an_image_drawn_again_gets_other_noise():
    perfect = gaussian_model()
    held_out = HeldOut(draw(perfect, 8, seed=5), {})
    record = probe_denoising(perfect, held_out, exact_reference(perfect), num_draws=64)
    errors = record.per_sample["denoising_errors"].value
    assert errors.shape[1] == 64
    assert all(len(np.unique(level)) == 64 for level in errors)
    assert (record.provenance["num_draws"], record.provenance["num_images"]) == (64, 8)


def test_intervals_count_images_not_draws():
    """The standard error of a mean of clusters: draws of one image are one observation."""
    perfect = gaussian_model()
    record = probe_denoising(perfect, HeldOut(draw(perfect, 16), {}), exact_reference(perfect), num_draws=128)
    errors, mse = record.per_sample["denoising_errors"].value, record.curves["denoising_mse"]
    of_image = errors.reshape(len(errors), 8, 16).mean(1)
    expected = student_t.ppf(0.975, 15) * of_image.std(1, ddof=1) / 4
    np.testing.assert_allclose((mse.upper - mse.lower) / 2, expected, rtol=1e-6)


def test_a_single_held_out_image_and_a_reference_of_other_latents_are_errors():
    model = gaussian_model()
    with refused("held-out image"):
        probe_denoising(model, HeldOut(draw(model, 1), {}), exact_reference(model), num_draws=64)
    other = LatentStatistics.fit(draw(gaussian_model((1, 4, 4)), 20))
    with refused(r"shape \(1, 4, 4\), the held-out ones are \(2, 4, 4\)"):
        probe_denoising(model, HeldOut(draw(model, 32), {}), other)


def test_image_loss_of_the_identity_codec_is_the_error_of_x0(perfect: ProbeRecord):
    curve = probe(gaussian_model(), image_loss=True).curves["image_mse"]
    assert "image_mse" not in perfect.curves
    # With the identity codec, ‖x̂0 − x0‖² = ‖ε̂ − ε‖²/SNR.
    expected = perfect.curves["denoising_mse"].value * np.exp(-curve.log_snr)
    np.testing.assert_allclose(curve.value, expected, rtol=1e-4)
