"""FeatureNetwork: what a small classifier of real images sees in an image, for distances between sets of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import as_file, files
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import without_autocast
from ldmprobe.errors import ConfigurationError
from ldmprobe.features.imagenet import ImageNetClassifier
from ldmprobe.io.digest import fingerprint, weights_fingerprint
from ldmprobe.types import PlainValues

_BUILTIN = {"builtin:digits": "digits", "builtin:cifar10": "cifar10"}


class FeatureNetwork(nn.Module):
    """A frozen classifier's penultimate features, in which Fréchet and kernel distances (FID: Heusel et al., 2017,
    arXiv:1706.08500; KID: Bińkowski et al., 2018, arXiv:1801.01401) are taken instead of in Inception's.

    Distances depend on the network and so compare with each other only, never with published FIDs.

    Args:
        network: "builtin:digits" (gray) or "builtin:cifar10" (RGB), shipped here; "imagenet", ``ImageNetClassifier``;
            a folder that ``scripts/build_feature_network.py`` wrote; or a classifier itself.

    Attributes:
        num_features: F.
        description: what tells this network from another: its architecture and a hash of its weights.

    Raises:
        ConfigurationError: nothing loadable there.
    """

    def __init__(self, network: str | Classifier) -> None:
        super().__init__()
        self.classifier = _load(network) if isinstance(network, str) else network
        self.num_features = self.classifier.num_features
        what = fingerprint(self.classifier.config, weights_fingerprint(self.classifier.state_dict().values()))
        self.description = f"{type(self.classifier).__name__}, {self.num_features} features, fingerprint {what}"
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Stays in eval mode: it measures."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [−1, 1], clipped to it → features (N, F), always in float32.

        Images of another size are resized, as clean-fid does (Parmar et al., 2022, arXiv:2104.11222: bicubic,
        antialiased). Gray images are repeated for an RGB network.

        Raises:
            ConfigurationError: a number of channels the network does not take.
        """
        size, channels = self.classifier.config["image_size"], self.classifier.config["channels"]
        if images.shape[1] == 1:
            images = images.expand(-1, channels, -1, -1)
        if images.shape[1] != channels:
            raise ConfigurationError(
                f"The images have {images.shape[1]} channels but the feature network takes {channels}; use "
                f"'builtin:cifar10' for RGB, 'builtin:digits' for gray, or set the data's `channels: {channels}`."
            )
        with without_autocast(images.device):
            images = images.float().clamp(-1, 1)
            if images.shape[2:] != (size, size):
                images = F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)
            return self.classifier.features(images)


class ImageClassifier(nn.Module):
    """A convolutional classifier: a convolution, then stages of max pooling and two convolutions, mean over pixels,
    linear head.

    Args:
        channels: of the images.
        num_classes: of the head.
        width: channels of the first convolution and of each stage; the last is the number of features.
        image_size: images are this many pixels square.
    """

    def __init__(
        self, channels: int, num_classes: int, width: Sequence[int] = (24, 48, 96, 96), image_size: int = 32
    ) -> None:
        super().__init__()
        self.config: PlainValues = {
            "channels": channels,
            "num_classes": num_classes,
            "width": list(width),
            "image_size": image_size,
        }
        self.num_features = width[-1]
        layers = [*_convolution(channels, width[0])]
        for narrow, wide in pairwise(width):
            layers += [nn.MaxPool2d(2), *_convolution(narrow, wide), *_convolution(wide, wide)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(self.num_features, num_classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images (N, C, H, W) in [−1, 1] → the last activations (N, width, h, w) of each stage, with gradients; of any
        size.
        """
        maps = []
        for layer in self.body:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(images)
            images = layer(images)
        return [*maps, images]

    def features(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [−1, 1] → features (N, F), none below 0."""
        return self.body(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [−1, 1] → logits (N, classes)."""
        return self.head(self.features(images))

    def save(self, folder: Path) -> None:
        """``config.json`` and ``model.safetensors`` in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        weights = {name: t.half() if t.is_floating_point() else t for name, t in self.state_dict().items()}
        save_file({name: t.contiguous() for name, t in weights.items()}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> ImageClassifier:
        """Return what ``save`` wrote, in float32."""
        classifier = cls(**json.loads((folder / "config.json").read_text()))
        classifier.load_state_dict(load_file(folder / "model.safetensors"))
        return classifier


Classifier = ImageClassifier | ImageNetClassifier


def _convolution(narrow: int, wide: int) -> list[nn.Module]:
    return [nn.Conv2d(narrow, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]


def _load(name: str) -> Classifier:
    if name == "imagenet":
        return ImageNetClassifier()
    if name in _BUILTIN:
        with as_file(files("ldmprobe.features") / _BUILTIN[name]) as folder:
            return ImageClassifier.load(folder)
    try:
        return ImageClassifier.load(Path(name).expanduser())
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ConfigurationError(
            f"No feature network could be loaded from {name!r} ({error}); expected {', '.join(_BUILTIN)}, imagenet or "
            "a folder written by scripts/build_feature_network.py."
        ) from error
