"""Perceptual losses: distances of two images in what a frozen network sees of them, with gradients to both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import without_autocast
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.features.classifier import Classifier, FeatureNetwork
from ldmprobe.models.lazy import LazyModule
from ldmprobe.types import Component

Trunk = Literal["vgg", "alex", "squeeze"]
_SMALLEST = 1e-10  # of the squared norm of a pixel's features, as LPIPS has it
_TRUNKS = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


class PerceptualDistance(nn.Module, ABC):
    """A distance of images in the maps of a frozen network, which stays in eval mode and float32 for ever, and is no
    part of what is saved.

    Args:
        network: the network.
        weight: of the distance in the loss.
        description: what tells this distance from another.
    """

    def __init__(self, network: nn.Module, weight: float, description: str) -> None:
        super().__init__()
        check_numbers(type(self).__name__, 0, weight=weight)
        self.weight, self.description = weight, description
        self._frozen = LazyModule(network)
        self._frozen.saved = False

    @property
    def network(self) -> Component:
        return self._frozen.network

    @abstractmethod
    def check(self, channels: int) -> None:
        """Raise ConfigurationError if the network does not take images of so many channels."""

    @abstractmethod
    def compare(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the distances (N,) of two batches of images in float32."""

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the distance (N,) of each image (N, C, H, W) in [−1, 1] from its counterpart, in float32, with
        gradients to both.
        """
        with without_autocast(images.device):
            return self.compare(images.float(), others.float())

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the mean distance of two batches of images."""
        return self.distance(images, others).mean()


class PerceptualLoss(PerceptualDistance):
    r"""d(x, x̂) = Σ_l mean_hw ‖ŷ_l(x) − ŷ_l(x̂)‖², ŷ_l the activations of layer l, at each pixel divided by their norm
    (Zhang et al., 2018, arXiv:1801.03924, eq. 1, with equal weights of channels).

    Images keep their size. Gray ones are repeated for an RGB network.

    Args:
        network: as ``FeatureNetwork``'s: "builtin:digits" (gray), "builtin:cifar10" or "imagenet" (RGB), a folder, or
            a classifier itself.
        weight: of d in the loss.

    Raises:
        ConfigurationError: nothing loadable there.
    """

    def __init__(self, network: str | Classifier = "builtin:cifar10", weight: float = 1.0) -> None:
        features = FeatureNetwork(network)
        super().__init__(features.classifier, weight, features.description)

    def check(self, channels: int) -> None:
        taken = self.network.config["channels"]
        if channels not in (1, taken):
            raise ConfigurationError(
                f"The images have {channels} channels but the perceptual loss's network takes {taken}; use "
                "'builtin:cifar10' for RGB, 'builtin:digits' for gray, or leave the perceptual loss out."
            )

    def compare(self, images: Tensor, others: Tensor) -> Tensor:
        pairs = zip(self._maps(images), self._maps(others), strict=True)
        return torch.stack([(_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)

    def _maps(self, images: Tensor) -> list[Tensor]:
        network = self.network
        return network.maps(images.expand(-1, network.config["channels"], -1, -1) if images.shape[1] == 1 else images)


class LPIPS(PerceptualDistance):
    """LPIPS with its learned weights of channels (Zhang et al., 2018, arXiv:1801.03924), by torchmetrics, on a trunk of
    torchvision that is on this machine; nothing is downloaded.

    Args:
        trunk: "vgg", "alex" or "squeeze".
        weight: of the distance in the loss.

    Raises:
        ConfigurationError: torchvision is not installed, or has not the trunk's weights in torch's hub cache.
    """

    def __init__(self, trunk: Trunk = "vgg", weight: float = 1.0) -> None:
        if trunk not in _TRUNKS:
            raise ConfigurationError(f"LPIPS got trunk {trunk!r}; expected one of {', '.join(_TRUNKS)}.")
        file = Path(torch.hub.get_dir()) / "checkpoints" / _TRUNKS[trunk]
        if not file.is_file():
            raise ConfigurationError(
                f"LPIPS needs torchvision's weights of {trunk} in {file}, and downloads nothing itself; put them "
                "there, or use PerceptualLoss, whose features ship with ldmprobe."
            )
        try:
            from torchmetrics.functional.image.lpips import _NoTrainLpips

            with torch.random.fork_rng(devices=[]):  # its layers are initialized before the weights are read
                network = _NoTrainLpips(net=trunk)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "LPIPS needs torchvision: `pip install torchvision`, or use PerceptualLoss, whose features ship with "
                "ldmprobe."
            ) from error
        super().__init__(network, weight, f"LPIPS of {trunk}")

    def check(self, channels: int) -> None:
        if channels not in (1, 3):
            raise ConfigurationError(f"The images have {channels} channels, and LPIPS takes 1 or 3; leave it out.")

    def compare(self, images: Tensor, others: Tensor) -> Tensor:
        distances: Tensor = self.network(*(x.expand(-1, 3, -1, -1) for x in (images, others)))
        return distances.flatten()


def _unit(maps: Tensor) -> Tensor:
    """Divide (N, C, h, w) by the norm over channels, whose gradient stays finite at 0."""
    return maps * (maps.square().sum(1, keepdim=True) + _SMALLEST).rsqrt()
