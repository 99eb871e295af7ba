"""Perceptual losses: the formula, and gradients that reach the decoder."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from ldmprobe import LPIPS, FeatureNetwork, PerceptualLoss
from ldmprobe.models.autoencoder import images_of, last_layer, latents_of
from tests.helpers import FLOAT32, refused
from tests.pipelines import autoencoder


def test_it_is_the_distance_of_activations_of_length_1():
    loss, classifier = PerceptualLoss("builtin:cifar10"), FeatureNetwork("builtin:cifar10").classifier
    x, y = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = [classifier.maps(images) for images in (x, y)]
    assert len(maps[0]) == len(classifier.config["width"])
    torch.testing.assert_close(maps[0][-1].mean((2, 3)), classifier.features(x), **FLOAT32)
    expected = sum(
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).pow(2).sum(1).mean((1, 2)) for a, b in zip(*maps, strict=True)
    )
    torch.testing.assert_close(loss.distance(x, y), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss(x, y), expected.mean(), rtol=1e-4, atol=1e-6)
    assert float(loss(x, x)) == 0
    assert float(loss(x[:, :1], y[:, :1])) > 0  # gray
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss.distance(x, y), expected, rtol=1e-4, atol=1e-6)


def test_its_gradient_reaches_the_decoder():
    network = autoencoder(AutoencoderKL, in_channels=3, out_channels=3)
    images = torch.rand(2, 3, 16, 16)
    loss = PerceptualLoss()(images, images_of(network, latents_of(network, images)))
    (gradient,) = torch.autograd.grad(loss, last_layer(network))
    assert float(gradient.norm()) > 1e-4
    assert bool(gradient.isfinite().all())


def test_lpips_without_its_trunk_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with refused("vgg16-397923af.pth.*PerceptualLoss"):
        LPIPS()
    with refused("expected one of vgg, alex, squeeze"):
        LPIPS("resnet")
    with refused("weight -1"):
        PerceptualLoss(weight=-1)


@pytest.mark.parametrize("size", [8, 16, 40])
def test_images_keep_their_size(size):
    assert PerceptualLoss("builtin:digits").distance(*torch.rand(2, 3, 1, size, size)).shape == (3,)
