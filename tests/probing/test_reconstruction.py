"""The reconstruction probe against torchmetrics, diffusers and scikit-learn, and what its record is whoever shares the
work."""

import io
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from PIL import Image
from scipy.fft import dctn
from sklearn.decomposition import PCA
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ldmprobe import AutoencoderModel, FeatureNetwork, Originals, RecordStore, probe_reconstruction
from ldmprobe.features.classifier import ImageClassifier
from ldmprobe.probing.quality import fid_and_kid
from tests.helpers import refused
from tests.pipelines import autoencoder
from tests.probing.gaussian import assert_same_record, on_ranks

SHAPE, ENTRIES = (3, 16, 16), 2 * 8 * 8


@pytest.fixture(scope="module")
def images():
    """Training and held-out ones, smooth ones of three colors."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(180, 3, 4, 4, generator=generator) * 2 - 1
    fine = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")
    return (fine + 0.05 * torch.randn(180, *SHAPE, generator=generator)).clamp(-1, 1).split([160, 20])


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(0)
    return FeatureNetwork(ImageClassifier(3, 2, width=(4, 6), image_size=16).eval())


@pytest.fixture(scope="module")
def originals(images, features):
    return Originals.of(images[0].split(50), images[1].split(7), ENTRIES, features)


def model(cls=AutoencoderKL, **options):
    torch.manual_seed(1)
    network = autoencoder(cls, in_channels=3, out_channels=3, **options)
    return AutoencoderModel(network, image_shape=SHAPE, weights="ema")


class Distance(torch.nn.Module):
    """A mean distance, as a perceptual loss has it."""

    def forward(self, images, others):
        return (images - others).abs().mean()


def squared(a, b):
    return (a - b) ** 2


def test_what_is_lost_is_as_torchmetrics_and_scikit_learn_have_it(images, originals, features):
    training, held_out = images
    subject = model()
    record = probe_reconstruction(subject, [held_out], originals, features, kid_subset_size=10)
    found = subject.decode(subject.encode(held_out)).clamp(-1, 1)
    scalars = record.scalars
    assert scalars["psnr"] == pytest.approx(float(peak_signal_noise_ratio(found, held_out, data_range=2.0)))
    ssim = structural_similarity_index_measure(found, held_out, data_range=2.0)
    assert scalars["ssim"] == pytest.approx(float(ssim), rel=1e-5)
    pca = PCA(ENTRIES, svd_solver="full").fit(training.flatten(1).double())
    linear = squared(pca.inverse_transform(pca.transform(held_out.flatten(1).double())), held_out.flatten(1).numpy())
    assert scalars["pca_psnr"] == pytest.approx(10 * math.log10(4 / linear.mean()), rel=1e-6)
    assert scalars["skill_over_pca"] == pytest.approx(1 - float(squared(found, held_out).mean()) / linear.mean())
    torch.manual_seed(0)
    expected = fid_and_kid(features(held_out), features(found), 10)
    assert [scalars[name] for name in ("rfid", "rkid", "rkid_std")] == pytest.approx(expected, rel=1e-4, abs=1e-7)

    small = subject.decode(torch.nn.functional.avg_pool2d(subject.encode(held_out), 2)).clamp(-1, 1)
    error = squared(small, torch.nn.functional.avg_pool2d(held_out, 2)).mean()
    assert scalars["equivariance_error"] == pytest.approx(float(error), rel=1e-5)
    flat = torch.tensor([-0.8, -0.4, 0.0, 0.4, 0.8]).view(-1, 1, 1, 1).expand(-1, *SHAPE)
    energy = np.abs(np.fft.fft2(subject.decode(subject.encode(flat)).numpy())) ** 2
    assert scalars["grid_energy"] == pytest.approx(1 - energy[:, :, 0, 0].sum() / energy.sum(), rel=1e-4)

    picture = np.asarray(Image.open(io.BytesIO(record.images["reconstructions"][3])))
    assert picture.shape == (48, 16, 3)
    np.testing.assert_array_equal(picture[:16], ((held_out[3] + 1) * 127.5).round().byte().movedim(0, -1))
    assert len(record.images["prior_samples"]) == 10
    assert "noise by design" in record.metric("prior_samples").meaning
    assert record.provenance["weights"] == "ema"
    assert f"{scalars['psnr']:.1f} dB" in record.provenance["summary"]


def test_rate_spectrum_and_moments_of_latents(images, originals):
    subject = model()
    with torch.no_grad():  # the second channel says nothing, with the prior's own variance
        for moment, bias in ((1, 0.0), (3, 0.0)):
            subject.network.quant_conv.weight[moment] = 0
            subject.network.quant_conv.bias[moment] = bias
    record = probe_reconstruction(subject, images[1].split(6), originals)
    posterior = subject.posterior(images[1])
    kl = float(posterior.kl().mean())
    assert record.scalars["kl_nats"] == pytest.approx(kl / math.prod(SHAPE), rel=1e-5)
    assert record.scalars["bits_per_pixel"] == pytest.approx(kl / math.log(2) / 256, rel=1e-5)
    assert record.curves["kl_per_channel"].value == pytest.approx([kl, 0.0], rel=1e-5, abs=1e-6)
    assert record.scalars["active_channels"] == 1
    varies = posterior.mean.var(0, correction=0) > 0.01
    assert record.scalars["active_entries"] == int(varies.sum()) > 0

    z = posterior.mode()
    np.testing.assert_allclose(record.curves["latent_mean"].value, z.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(record.curves["latent_variance"].value[:1], z[:, :1].var(correction=0), rtol=1e-4)
    variance = dctn(z[:, 0].double().numpy(), axes=(1, 2), norm="ortho").var(0)
    radius = np.hypot(*np.indices((8, 8))).round()
    spectrum = np.array([variance[radius == r].mean() for r in range(8)])
    found = record.curves["latent_spectrum"].value
    np.testing.assert_allclose(found / found[0], spectrum / spectrum[0], rtol=1e-4)
    slope = np.polyfit(np.log(np.arange(2, 8)), np.log(spectrum[2:]), 1)[0]
    assert record.scalars["latent_slope"] == pytest.approx(slope, rel=1e-4)
    assert len(record.curves["image_spectrum"].value) == 16


def test_codes_are_counted_over_all_images(images, originals):
    subject = model(VQModel, num_vq_embeddings=12)
    record = probe_reconstruction(subject, images[1].split(3), originals)
    z = subject.encode(images[1]).movedim(1, -1).flatten(0, 2)
    codes = torch.cdist(z, subject.network.quantize.embedding.weight).argmin(1)
    share = torch.bincount(codes, minlength=12) / len(codes)
    assert record.scalars["codes_used"] == pytest.approx(float((share > 0).double().mean()))
    perplexity = float(torch.special.entr(share).sum().exp())
    assert record.scalars["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert record.scalars["bits_per_pixel"] == pytest.approx(math.log2(perplexity) * 64 / 256, rel=1e-4, abs=1e-6)
    assert "kl_nats" not in record.scalars


@pytest.mark.parametrize("cls", [AutoencoderKL, VQModel])
def test_one_record_for_one_rank_or_several_and_it_is_read_back(images, originals, features, cls, tmp_path):
    subject = model(cls)

    def probe(ranks=None):
        held_out = images[1][:11].split(4)
        few = Originals.of([images[0]], held_out, ENTRIES, features)
        return probe_reconstruction(subject, held_out, few, features, Distance(), 4, 5, 1, ranks=ranks)

    torch.manual_seed(5)
    state = torch.get_rng_state()
    subject.network.train()
    expected = probe()
    assert subject.network.training
    assert torch.equal(torch.get_rng_state(), state)
    for record in on_ranks(3, probe):
        assert_same_record(record, expected, rtol=1e-6, atol=1e-8)
    store = RecordStore(tmp_path)
    store.append(expected)
    assert_same_record(store.read("reconstruction")[0], expected)


def test_an_autoencoder_without_posterior_or_codes_has_no_rate(images, originals):
    record = probe_reconstruction(model(AutoencoderTiny), images[1].split(5), originals)
    assert {"psnr", "latent_slope"} <= record.scalars.keys()
    assert not {"kl_nats", "codes_used", "bits_per_pixel", "rfid"} & record.scalars.keys()
    assert list(record.images) == ["reconstructions"]


def test_an_autoencoder_that_has_diverged_has_no_psnr(images, originals, features):
    subject = model()
    with torch.no_grad():
        subject.network.decoder.conv_out.bias.fill_(torch.nan)
    record = probe_reconstruction(subject, [images[1]], originals, features, kid_subset_size=10)
    for name in ("psnr", "psnr_half_width", "skill_over_pca", "ssim", "rfid", "equivariance_error", "grid_energy"):
        assert math.isnan(record.scalars[name]), name
    assert "not finite" in record.provenance["summary"]


def test_values_beyond_pixels_are_kept_and_too_few_images_refused(images):
    training, held_out = images
    wide = Originals.of([3 * training], [3 * held_out], 4)
    assert (wide.low, wide.high) == (float(3 * training.min()), float(3 * training.max()))
    with refused("7 held-out images"):
        Originals.of([training], [held_out[:7]], 4)
