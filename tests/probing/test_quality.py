"""FID and KID: against scipy, scikit-learn, closed forms, and torchmetrics given the images; whatever the batch size or
ranks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ldmprobe import DiffusionModel, Sampling, probe_quality, sample_images
from ldmprobe.probing.quality import fid_and_kid
from ldmprobe.probing.real_features import IMAGES_AT_ONCE, RealFeatures, check_feature_network
from tests.helpers import gaussian_model, refused
from tests.probing.gaussian import assert_same_record, draw, faulty, on_ranks

SMALL = Sampling(41, 4)


def quality(model, real, network, kid_subset_size=20, ranks=None, step=0, **sampling):
    """Return a small quality probe's record, its sampling changed by ``sampling``."""
    return probe_quality(model, real, network, replace(SMALL, **sampling), kid_subset_size, step, ranks)


CPU = torch.device("cpu")


class Pixels(nn.Flatten):
    """Images of ``gaussian_model()`` as they are: features whose distribution is known."""

    num_features = 32


class Convolutions(nn.Sequential):
    """A user's own network, with batch norm and dropout."""

    num_features = 6

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        layers = (nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(*layers)


def real_of(network: nn.Module, model: DiffusionModel, num_images: int = 60, batch_size: int = 25) -> RealFeatures:
    images = draw(model, num_images).float().clamp(-1, 1)
    return RealFeatures.of(network, images.split(batch_size), CPU, "train")


def gaussians(n: int, mean, factor, seed: int) -> np.ndarray:
    """n draws of N(mean, factor factorᵀ)."""
    return np.asarray(mean) + np.random.default_rng(seed).standard_normal((n, len(factor))) @ np.asarray(factor).T


def frechet(mean, covariance, other_mean, other_covariance) -> float:
    root = scipy.linalg.sqrtm(covariance @ other_covariance).real
    return float(np.sum((mean - other_mean) ** 2) + np.trace(covariance + other_covariance - 2 * root))


# --- the two numbers -------------------------------------------------------------------------------------------------


def test_fid_is_the_frechet_distance_of_sample_moments_and_of_the_gaussians_they_are_of():
    generator = np.random.default_rng(0)
    factors = [np.eye(5) + 0.3 * generator.standard_normal((5, 5)) for _ in range(2)]
    means = [np.zeros(5), np.linspace(0, 1, 5)]
    real, generated = (gaussians(40_000, means[i], factors[i], seed=i) for i in range(2))
    fid, _, _ = fid_and_kid(torch.tensor(real), torch.tensor(generated), kid_subset_size=50)
    exact = frechet(real.mean(0), np.cov(real.T), generated.mean(0), np.cov(generated.T))
    assert fid == pytest.approx(exact, rel=1e-9)
    closed_form = frechet(means[0], factors[0] @ factors[0].T, means[1], factors[1] @ factors[1].T)
    assert fid == pytest.approx(closed_form, rel=0.03)  # standard error 0.8 %


def test_a_set_is_at_no_distance_from_itself():
    features = torch.tensor(gaussians(200, np.zeros(8), np.eye(8), seed=0))
    fid, kid, _ = fid_and_kid(features, features.flip(0), kid_subset_size=200)
    assert fid == pytest.approx(0, abs=1e-9)
    assert kid < 0  # unbiased: pairs of an image with itself are left out on one side


def test_fewer_samples_than_features_make_fid_large_and_not_an_error():
    real, few, many = (torch.tensor(gaussians(n, np.zeros(64), np.eye(64), seed=n)) for n in (5000, 40, 2000))
    assert fid_and_kid(real, few, 20)[0] > 10 * fid_and_kid(real, many, 20)[0] > 0


def test_kid_is_the_unbiased_mmd_with_the_cubic_kernel():
    real, generated = gaussians(50, np.zeros(6), np.eye(6), seed=0), gaussians(50, np.ones(6), 2 * np.eye(6), seed=1)
    _, kid, kid_std = fid_and_kid(torch.tensor(real), torch.tensor(generated), kid_subset_size=50)

    def kernel(x, y):
        return polynomial_kernel(x, y, degree=3, gamma=1 / 6, coef0=1)

    within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (50 * 49) for x in (real, generated))
    assert kid == pytest.approx(within - 2 * kernel(real, generated).mean(), rel=1e-9)
    assert kid_std == pytest.approx(0, abs=1e-9)  # every subset is the whole


def test_features_that_are_not_finite_have_no_distance():
    features = torch.ones(10, 3)
    features[4, 1] = math.nan
    assert all(math.isnan(value) for value in fid_and_kid(torch.ones(10, 3), features, 5))


# --- the probe -------------------------------------------------------------------------------------------------------


def test_fid_is_torchmetrics_of_the_decoded_samples():
    model, network = gaussian_model(), Convolutions().eval()
    real = real_of(network, model)
    record = quality(model, real, network)
    metric = FrechetInceptionDistance(network, normalize=True)
    with torch.no_grad():
        metric.update(draw(model, 60).float().clamp(-1, 1), real=True)
        metric.update(sample_images(model, Sampling(41, 4)).clamp(-1, 1), real=False)
    assert record.scalars["fid"] == pytest.approx(float(metric.compute()), rel=1e-4)


def test_a_perfect_model_is_nearer_to_the_data_than_one_with_a_fault():
    model, network = gaussian_model(), Pixels()
    real = real_of(network, model, 1500)
    settings = {"num_samples": 1500, "num_steps": 20, "kid_subset_size": 500}
    perfect = quality(model, real, network, **settings).scalars
    spoilt = quality(faulty(0, 400, 2.0), real, network, **settings).scalars
    assert perfect["fid"] < 0.5 * spoilt["fid"]
    assert abs(perfect["kid"]) < 2 * perfect["kid_std"]
    assert spoilt["kid"] > 3 * spoilt["kid_std"]


def test_a_record_says_what_it_was_measured_with():
    model, network = gaussian_model(), Convolutions()
    record = quality(model, real_of(network, model), network, seed=3, step=70)
    assert (record.probe, record.step) == ("quality", 70)
    expected = {"num_samples": 41, "num_real": 60, "real": "train", "feature_network": "Convolutions"}
    expected |= {"num_features": 6, "num_steps": 4, "guidance_scale": 1.0, "kid_subset_size": 20, "seed": 3}
    assert expected.items() <= record.provenance.items()


def test_whatever_changes_the_measure_changes_a_fingerprint():
    model, network = gaussian_model(), Convolutions()

    def measured(images=60, seed=0, net=network, **settings):
        record = quality(model, real_of(net, model, images), net, **settings, seed=seed)
        return record.fingerprints

    expected = measured()
    for part, other in {
        "grid": measured(num_steps=5),
        "sampler": measured(num_samples=42),
        "features": measured(net=Convolutions(seed=1)),
        "real_images": measured(images=59),
    }.items():
        assert {name for name in expected if expected[name] != other[name]} == {part}


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 1), (1, 7), (1, 256), (2, 5), (3, 5), (42, 5)])
def test_ranks_and_batches_agree_with_one_process_and_with_each_other(world_size, batch_size):
    images = draw(gaussian_model(), 60).float()
    networks = [Convolutions() for _ in range(world_size + 1)]  # torch's seed is the process's, not the thread's

    def work(ranks=None, batch_size=20):
        model, network = gaussian_model(), networks[ranks.rank if ranks else -1]
        return quality(model, RealFeatures.of(network, [images], CPU), network, batch_size=batch_size, ranks=ranks)

    expected = work()
    records = on_ranks(world_size, lambda ranks: work(ranks, batch_size))
    for record in records:
        assert_same_record(record, expected, rtol=1e-5, atol=1e-8)
        assert record.scalars == records[0].scalars


def test_few_images_are_in_memory_at_once():
    model, network = gaussian_model(), Convolutions()
    real, sizes = real_of(network, model, 60, batch_size=60), []
    network.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    quality(model, real, network)
    assert sum(sizes) == 41
    assert max(sizes) == IMAGES_AT_ONCE


def test_progress_counts_the_steps_of_all_batches():
    model, network, seen = gaussian_model(), Pixels(), []
    real = real_of(network, model)
    probe_quality(
        model, real, network, Sampling(5, 2, batch_size=3), kid_subset_size=4, progress=lambda *done: seen.append(done)
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 1}, "num_samples is 1; expected at least 2"),
        ({"kid_subset_size": 1}, "kid_subset_size is 1; expected at least 2"),
        ({"kid_subset_size": 42}, "kid_subset_size is 42, more than num_samples, 41; expected at most as many"),
        ({"batch_size": 0}, "batch_size 0; expected at least 1"),
        ({"num_steps": 0}, "num_steps is 0; expected 1 to 1000"),
        ({"num_samples": 99, "kid_subset_size": 61}, "kid_subset_size is 61, but there are 60 real images"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    model, network = gaussian_model(), Pixels()
    with refused(message):
        quality(model, real_of(network, model), network, **settings)


# --- real features and their network ---------------------------------------------------------------------------------


def test_the_same_images_are_known_again_in_any_order_and_batches():
    images, network = draw(gaussian_model(), 60).float(), Pixels()
    one = RealFeatures.of(network, images.split(7), CPU)
    other = RealFeatures.of(network, images.flip(0).split(60), CPU)
    assert one.images == other.images
    torch.testing.assert_close(one.features, other.features.flip(0))
    assert one.images != RealFeatures.of(network, images[1:].split(7), CPU).images


def test_what_is_saved_is_loaded(tmp_path):
    real = replace(real_of(Convolutions(), gaussian_model()), data="known")
    real.save(tmp_path / "real.safetensors")
    loaded = RealFeatures.load(tmp_path / "real.safetensors")
    assert (loaded.images, loaded.network, loaded.source) == (real.images, real.network, "train")
    assert loaded.data == "known"
    assert torch.equal(loaded.features, real.features)
    (tmp_path / "real.safetensors").write_bytes(b"torn")
    with refused(r"real.safetensors is not readable as features of real images"):
        RealFeatures.load(tmp_path / "real.safetensors")


def test_features_of_other_weights_and_of_no_images_are_refused():
    model = gaussian_model()
    with refused("features are of another network, or of other weights"):
        quality(model, real_of(Convolutions(0), model), Convolutions(1))
    with refused("no real images"):
        RealFeatures.of(Pixels(), [], CPU)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Flatten(), r"Flatten makes \(2, 32\) of 2 images; expected \(2, num_features\), and its num_features is None"),
        (nn.Conv2d(3, 4, 1), r"Conv2d cannot take the model's images of shape \(2, 4, 4\)"),
    ],
)  # fmt: skip
def test_a_network_that_does_not_fit_is_refused(network, message):
    with refused(message):
        check_feature_network(network, (2, 4, 4), CPU)
