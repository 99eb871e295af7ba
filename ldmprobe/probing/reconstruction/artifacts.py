"""What a decoder adds of its own: what it makes of latents that are scaled down, and a grid on images of one color."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ldmprobe.io.metric import Metric
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.probing.reconstruction.measure import PerImage, Reconstructed
from ldmprobe.probing.reconstruction.originals import Originals

_LEVELS = (-0.8, -0.4, 0.0, 0.4, 0.8)


class ScaleEquivariance(PerImage):
    """Mean squared error of D(↓z) against ↓x, both ↓ means over 2 × 2 (Skorokhodov et al., 2025, arXiv:2502.14831, eq.
    5; Kouzelis et al., 2025, arXiv:2502.09509).
    """

    metrics = (
        Metric(
            "equivariance_error", "Equivariance error",
            "Mean squared error of the decoded half-size latent against the half-size image: small where latents are "
            "an image of the image, whose coarse part can be learned by itself.",
            "squared error per pixel", good="lower", shown="headline",
        ),
    )  # fmt: skip

    @classmethod
    def applies(cls, model: AutoencoderModel, originals: Originals) -> bool:
        return all(size % 2 == 0 for size in model.latent_shape[1:])

    def update(self, batch: Reconstructed) -> None:
        small = self.model.decode(F.avg_pool2d(batch.latents, 2)).clamp(self.originals.low, self.originals.high)
        self.keep(batch, (small - F.avg_pool2d(batch.images, 2)).square().flatten(1).mean(1))


def grid_energy(model: AutoencoderModel, image_shape: tuple[int, ...]) -> float:
    """Return the share of spectral energy away from frequency 0 in reconstructions of images of one gray level each."""
    levels = torch.tensor(_LEVELS, device=model.device).view(-1, 1, 1, 1)
    flat = model.decode(model.encode(levels.expand(-1, *image_shape).contiguous()))
    energy = torch.fft.fft2(flat.double()).abs().square()
    return float(1 - energy[..., 0, 0].sum() / energy.sum().clamp(min=1e-30))


GRID_ENERGY = Metric(
    "grid_energy", "Grid energy",
    "Share of spectral energy away from frequency 0 in what images of one color come back as: the decoder's grid and "
    "its borders.", "share of energy", good="lower", log=True, shown="headline",
)  # fmt: skip
