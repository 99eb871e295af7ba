"""ReconstructionLoss: how far decoded images are from their originals, in pixels and as a network sees them."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.features.perceptual import PerceptualDistance
from ldmprobe.models.autoencoder_model import check_same_shape

Reconstruction = Literal["l1", "mse"]


class ReconstructionLoss(nn.Module):
    r"""ℓ = mean |x − x̂| or mean (x − x̂)², plus w times a perceptual distance; with a learnt log-variance s, ℓ/eˢ + s
    (as in VQGAN's code and LDM's). All are means per image entry.

    Args:
        kind: "l1" or "mse".
        perceptual: with its weight w.
        log_variance: the value that s starts from; None leaves it out.

    Raises:
        ConfigurationError: another kind.
    """

    def __init__(
        self,
        kind: Reconstruction = "l1",
        perceptual: PerceptualDistance | None = None,
        log_variance: float | None = None,
    ) -> None:
        super().__init__()
        if kind not in get_args(Reconstruction):
            raise ConfigurationError(f"Autoencoding got reconstruction {kind!r}; expected 'l1' or 'mse'.")
        if log_variance is not None:
            check_numbers("Autoencoding", -30, 20, log_variance=log_variance)
        self.kind, self.perceptual = kind, perceptual
        self.log_variance = None if log_variance is None else nn.Parameter(torch.tensor(float(log_variance)))

    def forward(self, images: Tensor, decoded: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of decoded images (N, C, H, W), in float32, and its parts by name.

        Raises:
            ConfigurationError: they have another shape than the images.
        """
        check_same_shape(images.shape[1:], decoded.shape[1:])
        difference = images - decoded
        loss = difference.abs().mean() if self.kind == "l1" else difference.square().mean()
        parts = {"reconstruction": loss.detach()}
        if self.perceptual is not None:
            distance = self.perceptual(images, decoded)
            parts["perceptual"] = distance.detach()
            loss = loss + self.perceptual.weight * distance
        if self.log_variance is not None:
            parts["log_variance"] = self.log_variance.detach()
            loss = loss / self.log_variance.exp() + self.log_variance
        return loss, parts
