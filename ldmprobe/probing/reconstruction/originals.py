"""Originals: what is known of images before any autoencoder: the yardsticks of its reconstructions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ldmprobe.analysis.radial_spectrum import cosine_coefficients, radial_mean
from ldmprobe.analysis.rate_distortion import LinearAutoencoder
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.models.pixels import as_bytes, checked_floats
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.real_features import IMAGES_AT_ONCE, describe_network, network_fingerprint

_MOST_VALUES = 50_000_000  # of training images in memory, for PCA


@dataclass(frozen=True)
class Originals:
    """Held-out images as training images have them expected.

    Attributes:
        shape: (C, H, W) of the images.
        num_images, num_reference: how many are held out, and how many of training PCA is fitted on.
        pca_error: mean squared error of each held-out image (N,) by PCA of training images with ``entries`` components,
            float64.
        entries: as many as a latent has.
        spectrum: radial spectrum of the held-out images, (R,).
        features: of the held-out images (N, F), float64; empty without a feature network.
        feature_network: what it is called; empty without one.
        low, high: [−1, 1], or further, where training images go.
        fingerprints: of the images and the feature network.
    """

    shape: tuple[int, ...]
    num_images: int
    num_reference: int
    pca_error: Tensor
    entries: int
    spectrum: np.ndarray
    features: Tensor
    feature_network: str
    low: float
    high: float
    fingerprints: dict[str, str]

    @classmethod
    def of(
        cls,
        training: Iterable[Tensor],
        held_out: Iterable[Tensor],
        entries: int,
        feature_network: nn.Module | None = None,
        device: torch.device | None = None,
    ) -> Originals:
        """From batches of training and of held-out images (N, C, H, W) in [−1, 1]. PCA takes as many of the former as
        have 50 million values.

        Raises:
            ConfigurationError: fewer than 8 of either.
        """
        networks = [] if feature_network is None else [feature_network.to(device)]
        with evaluating(networks):
            fitted = torch.cat(list(_first_values(training)) or [torch.empty(0, 1, 1, 1)])
            _refuse_few("training", len(fitted))
            pca = LinearAutoencoder.fit(fitted.flatten(1), entries)
            errors, seen, features = [], [], []
            number, sums, squares = 0, torch.zeros(fitted.shape[1:]).double(), torch.zeros(fitted.shape[1:]).double()
            for images in map(checked_floats, held_out):
                errors.append(pca.squared_error(images.flatten(1)) / images[0].numel())
                coefficients = cosine_coefficients(images.double())
                sums, squares = sums + coefficients.sum(0), squares + (coefficients**2).sum(0)
                number += len(images)
                seen += [fingerprint(pixels) for pixels in as_bytes(images)]
                for network in networks:
                    features += [network(part.to(device)).double().cpu() for part in images.split(IMAGES_AT_ONCE)]
        _refuse_few("held-out", number)
        prints = {
            "held_out": fingerprint(seen),
            "reference": fingerprint([f"{mean:.3e}" for mean in fitted.flatten(1).mean(1).tolist()[:64]], len(fitted)),
        }
        if feature_network is not None:
            prints["features"] = network_fingerprint(feature_network)
        return cls(
            shape=tuple(fitted.shape[1:]),
            num_images=number,
            num_reference=len(fitted),
            pca_error=torch.cat(errors),
            entries=entries,
            spectrum=radial_mean(squares / number - (sums / number) ** 2),
            features=torch.cat(features) if features else torch.empty(0, 0).double(),
            feature_network="" if feature_network is None else describe_network(feature_network),
            low=min(-1.0, float(fitted.min())),
            high=max(1.0, float(fitted.max())),
            fingerprints=prints,
        )


def _first_values(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    left = _MOST_VALUES
    for images in map(checked_floats, batches):
        number = max(left // images[0].numel(), 0)
        yield images[:number].cpu()
        left -= images.numel()
        if left <= 0:
            return


def _refuse_few(which: str, number: int) -> None:
    if number < 8:
        raise ConfigurationError(
            f"The reconstruction probe has {number} {which} images; expected at least 8. Give the data more, or leave "
            "the probe out."
        )
