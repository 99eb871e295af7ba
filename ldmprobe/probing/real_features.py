"""RealFeatures: what a feature network sees in real images. Computed once per run, kept on disk; samples are compared
with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint, weights_fingerprint
from ldmprobe.io.tensor_file import read_tensors, readable, write_tensors
from ldmprobe.models.pixels import as_bytes, as_floats, checked_floats
from ldmprobe.probing.probe import evaluating
from ldmprobe.types import Batch

IMAGES_AT_ONCE = 16  # through a decoder or feature network, which need far more memory per sample than a denoiser


@dataclass(frozen=True)
class RealFeatures:
    """Features of real images.

    Attributes:
        features: shape (M, F), float32, on the CPU.
        images: fingerprint of the images, in 8 bits, whatever their order.
        network: fingerprint of the feature network, weights included.
        source: what images were asked for.
        data: fingerprint of the data that they were asked of, if known.
    """

    features: Tensor
    images: str
    network: str
    source: str = ""
    data: str = ""

    @classmethod
    def of(
        cls, network: nn.Module, image_batches: Iterable[Tensor], device: torch.device, source: str = ""
    ) -> RealFeatures:
        """Compute the features of batches of images (N, C, H, W) in [−1, 1], of which one at a time is in memory.

        Raises:
            ConfigurationError: there are no images.
        """
        features, seen = [], []
        with evaluating([network.to(device)]):
            for images in map(checked_floats, image_batches):
                features += [network(part.to(device)).float().cpu() for part in images.split(IMAGES_AT_ONCE)]
                seen += [fingerprint(pixels) for pixels in as_bytes(images)]
        if not features:
            raise ConfigurationError("There are no real images to compare samples with.")
        return cls(torch.cat(features), fingerprint(sorted(seen)), network_fingerprint(network), source)

    def save(self, path: Path) -> None:
        """Write the features as safetensors, whole or not at all."""
        header = {name: value for name, value in vars(self).items() if name != "features"}
        write_tensors(path, {"features": self.features}, header)

    @classmethod
    def load(cls, path: Path) -> RealFeatures:
        """Read what ``save`` wrote.

        Raises:
            ConfigurationError: it is damaged, or something else.
        """
        with readable(path, "features of real images", "move it away, and they are computed again"):
            tensors, header = read_tensors(path)
            told = header["images"], header["network"], header["source"], header.get("data", "")
            return cls(tensors["features"], *told)


def images_at(batches: Iterable[Batch], places: Sequence[int]) -> Tensor:
    """Return the images of these places in batches, (n, C, H, W) in [−1, 1], without keeping others."""
    found: dict[int, Tensor] = {}
    wanted, seen = set(places), 0
    for batch in batches:
        images = as_floats(batch["image"])
        found |= {seen + i: images[i] for i in range(len(images)) if seen + i in wanted}
        seen += len(images)
    return torch.stack([found[place] for place in places])


def describe_network(network: nn.Module) -> str:
    """Return the network's ``description``, or the name of its class."""
    return str(getattr(network, "description", type(network).__name__))


def network_fingerprint(network: nn.Module) -> str:
    """Return the fingerprint of a network's description and weights."""
    return fingerprint(describe_network(network), weights_fingerprint(network.state_dict().values()))


def checked_fingerprint(network: nn.Module, *known: RealFeatures) -> str:
    """Return the fingerprint of the network whose features are all of these.

    Raises:
        ConfigurationError: some are another's.
    """
    found = network_fingerprint(network)
    if any(each.network != found for each in known):
        raise ConfigurationError(
            "The real images' features are of another network, or of other weights; compute them again."
        )
    return found


def check_feature_network(network: nn.Module, image_shape: tuple[int, ...], device: torch.device) -> int:
    """F, once it is seen that ``network`` maps images of this shape (C, H, W) in [−1, 1] to features (N, F), F its
    ``num_features``.

    Raises:
        ConfigurationError: it does not.
    """
    with evaluating([network.to(device)]):
        images = torch.zeros(2, *image_shape, device=device)
        name, shape = describe_network(network), tuple(image_shape)
        try:
            features = network(images)
        except RuntimeError as error:
            raise ConfigurationError(
                f"The feature network {name} cannot take the model's images of shape {shape} ({error}); choose one for "
                "such images."
            ) from error
    num_features = getattr(network, "num_features", None)
    if tuple(features.shape) != (2, num_features):
        raise ConfigurationError(
            f"The feature network {name} makes {tuple(features.shape)} of 2 images; expected (2, num_features), and "
            f"its num_features is {num_features}."
        )
    return int(features.shape[1])
