"""FeatureNetwork: frozen, its features tell real images from worse ones, and it says which network it is."""

import json
from importlib.resources import files

import pytest
import torch
import torch.nn.functional as F

from ldmprobe import FeatureNetwork, ImageData
from ldmprobe.features.classifier import ImageClassifier
from tests.helpers import FLOAT32, ready, refused

CHANNELS = {"builtin:digits": 1, "builtin:cifar10": 3}


@pytest.fixture(scope="module")
def digits():
    """Training and held-out digits, with labels."""
    data = ready(ImageData("builtin:digits", label_column="label", image_size=32))
    train = torch.cat([batch["image"] for batch in data.reference_batches(10_000)])
    held_out = list(data.reference_batches(10_000, held_out=True))
    return train, torch.cat([b["image"] for b in held_out]), torch.cat([b["label"] for b in held_out])


def _images(n: int = 4, channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _classifier() -> ImageClassifier:
    """With values that half precision holds exactly."""
    torch.manual_seed(0)
    return ImageClassifier(3, 5, (4, 8, 12)).half().float()


@pytest.mark.parametrize("name", CHANNELS)
def test_shipped_networks(name):
    network = FeatureNetwork(name)
    features = network(_images(channels=CHANNELS[name]))
    assert features.shape == (4, network.num_features)
    assert 64 <= network.num_features <= 128
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert (features >= 0).all()
    assert (features.std(0) > 0).float().mean() > 0.5


@pytest.mark.parametrize("folder", ["digits", "cifar10"])
def test_shipped_networks_are_small(folder):
    shipped = (files("ldmprobe.features") / folder).iterdir()
    assert sum(path.stat().st_size for path in shipped if path.is_file()) < 1_000_000


def test_digits_network_recognizes_digits_it_has_not_seen(digits):
    _, images, labels = digits
    network = FeatureNetwork("builtin:digits")
    accuracy = (network.classifier.head(network(images)).argmax(1) == labels).float().mean()
    assert accuracy >= 0.97


@torch.no_grad()
def test_digits_features_order_images_by_how_bad_they_are(digits):
    """Squared distance of mean features from those of training digits: held-out < noisy < noisier < noise alone,
    and blurred ones are far."""
    train, images, _ = digits
    network = FeatureNetwork("builtin:digits")
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    real = network(train).mean(0)
    blurred = F.avg_pool2d(images, 9, stride=1, padding=4, count_include_pad=False)
    worse = [images, images + 0.3 * noise, images + noise, noise, blurred]
    *distances, far = (float((network(x).mean(0) - real).square().sum()) for x in worse)
    assert distances == sorted(distances)
    assert min(distances[1], far) > 2 * distances[0]


def test_frozen_and_deterministic():
    network = FeatureNetwork(_classifier()).train()
    assert not any(module.training for module in network.modules())
    images = _images().requires_grad_()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first, second = network(images), network(images)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_each_image_by_itself():
    network = FeatureNetwork(_classifier())
    images = _images(6)
    torch.testing.assert_close(network(images), torch.cat([network(image[None]) for image in images]), **FLOAT32)


def test_what_a_picture_would_show():
    """Values beyond [−1, 1] count as the picture of them would, in any precision and under autocast."""
    network = FeatureNetwork(_classifier())
    images = _images() * 1.5
    torch.testing.assert_close(network(images), network(images.clamp(-1, 1)), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(images), network(images.float()), rtol=0, atol=0)
        assert network(images.half()).dtype == torch.float32


def test_other_sizes_are_resized(digits):
    _, images, _ = digits
    network = FeatureNetwork("builtin:digits")
    features = network(images)
    for size in (64, 24):
        other = network(F.interpolate(images, (size, size), mode="bicubic", antialias=True))
        assert other.shape == features.shape
        assert (other - features).square().mean() < 0.05 * features.var(0).mean()


def test_gray_images_are_repeated_for_an_rgb_network():
    network = FeatureNetwork(_classifier())
    gray = _images(channels=1)
    torch.testing.assert_close(network(gray), network(gray.repeat(1, 3, 1, 1)), rtol=0, atol=0)


def test_channels_that_do_not_fit_are_refused():
    with refused(r"have 3 channels but the feature network takes 1; .*`channels: 1`"):
        FeatureNetwork("builtin:digits")(_images())
    with refused("have 4 channels but the feature network takes 3"):
        FeatureNetwork(_classifier())(_images(channels=4))


def test_saved_and_loaded(tmp_path):
    classifier = _classifier()
    classifier.body[1].running_mean += 0.5  # a buffer, not a parameter
    network = FeatureNetwork(classifier.to(memory_format=torch.channels_last))
    classifier.save(tmp_path / "network")
    loaded = FeatureNetwork(str(tmp_path / "network"))
    assert loaded.description == network.description
    torch.testing.assert_close(loaded(_images()), network(_images()), **FLOAT32)


def test_description_tells_weights_apart():
    same, other = _classifier(), _classifier()
    other.body[1].running_var += 0.5
    description = FeatureNetwork(_classifier()).description
    assert description == FeatureNetwork(same).description
    assert description != FeatureNetwork(other).description
    assert "12 features" in description


def test_what_cannot_be_loaded_is_refused(tmp_path):
    message = (
        r"(?s)No feature network could be loaded from .*expected builtin:digits, builtin:cifar10, imagenet or a folder"
    )
    with refused(message):
        FeatureNetwork("builtin:faces")
    with refused(message):
        FeatureNetwork(str(tmp_path))
    _classifier().save(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with refused(message):
        FeatureNetwork(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(weights)
    for config in ("[", '{"kind": "other"}', json.dumps({"channels": 3, "num_classes": 5, "width": [4, 8, 16]})):
        (tmp_path / "config.json").write_text(config)
        with refused(message):
            FeatureNetwork(str(tmp_path))
