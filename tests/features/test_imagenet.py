"""ImageNetClassifier: the weights are read as they were trained, and it is a feature network and a perceptual loss."""

import sys

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images

from ldmprobe import FeatureNetwork, PerceptualLoss
from tests.helpers import refused

BELL_COTE, DAISY = 442, 985  # ImageNet's classes of a Chinese palace and of a dahlia


@pytest.fixture(scope="module")
def network():
    return FeatureNetwork("imagenet")


def test_it_recognizes_photographs(network):
    photographs = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    images = F.interpolate(photographs.movedim(3, 1) / 127.5 - 1, (224, 224), mode="bicubic", antialias=True)
    with torch.no_grad():
        assert network.classifier(images.clamp(-1, 1)).argmax(1).tolist() == [BELL_COTE, DAISY]
    features = network(images)
    assert features.shape == (2, network.num_features)
    torch.testing.assert_close(network(photographs.movedim(3, 1) / 127.5 - 1), features, rtol=0.05, atol=0.05)
    assert "ImageNetClassifier" in network.description


def test_its_maps_have_gradients(network):
    loss = PerceptualLoss("imagenet")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    maps = loss.network.maps(images)
    assert [tuple(found.shape[1:]) for found in maps] == [
        (16, 16, 16),
        (24, 8, 8),
        (40, 4, 4),
        (112, 2, 2),
        (320, 1, 1),
    ]
    (gradient,) = torch.autograd.grad(loss(images, 0.9 * images.detach()), images)
    assert bool(gradient.isfinite().all())
    assert float(gradient.norm()) > 0
    with refused("5 channels.*takes 3"):
        loss.check(5)


def test_without_the_extra_it_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with refused(r"ldmprobe\[perceptual\].*builtin:cifar10"):
        FeatureNetwork("imagenet")
