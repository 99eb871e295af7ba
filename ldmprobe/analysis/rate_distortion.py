r"""What an autoencoder of Gaussian data can reach: reverse water-filling, and PCA where no rate is paid.

Data with covariance eigenvalues ℓ_i, water level θ (Cover & Thomas, Elements of Information Theory, 10.3.3):

.. math:: D_i = \min(\ell_i, \theta), \qquad R_i = \tfrac12 \ln(\ell_i / \theta) \text{ if } \ell_i > \theta
          \text{ else } 0.

A linear β-VAE trained by squared error/(2s) + β·KL reaches just that at θ = β s, with one latent entry for each
direction: its decoder's squared gain is ℓ − θ, its posterior's variance θ/ℓ. A direction collapses (posterior = prior)
iff ℓ ≤ θ (Lucas et al., 2019, arXiv:1911.02469, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WaterFilling:
    """The optimum along each direction, all (D,), float64.

    Attributes:
        distortion: mean squared error.
        rate: nats, the KL of the posterior from the prior.
        active: whether anything of the direction is kept; the others are collapsed.
        decoder_gain: of a linear β-VAE, the length of its decoder's column.
        posterior_variance: of a linear β-VAE; 1, the prior's, where collapsed.
    """

    distortion: Tensor
    rate: Tensor
    active: Tensor
    decoder_gain: Tensor
    posterior_variance: Tensor


def reverse_water_filling(eigenvalues: Tensor, theta: float) -> WaterFilling:
    """Return the optimum at water level ``theta`` > 0, in units of the eigenvalues (D,)."""
    spectrum = eigenvalues.double()
    kept = spectrum.clamp(min=theta)
    return WaterFilling(
        distortion=spectrum.clamp(max=theta),
        rate=0.5 * (kept / theta).log(),
        active=spectrum > theta,
        decoder_gain=(kept - theta).sqrt(),
        posterior_variance=theta / kept,
    )


def water_level(eigenvalues: Tensor, rate: float) -> float:
    """Return the water level θ at which all directions together have ``rate`` nats; the curve D(R) is then
    ``reverse_water_filling(eigenvalues, θ).distortion.sum()``, and nothing that spends ``rate`` lies below it.
    """
    falling = eigenvalues.double().sort(descending=True).values
    falling = falling[falling > 0]
    active = torch.arange(1, len(falling) + 1, dtype=torch.float64)
    # With the first m active, Σ ½ ln(ℓ_i/θ) = rate; the right m is the last whose direction is above its level.
    levels = ((falling.log().cumsum(0) - 2 * rate) / active).exp()
    return float(levels[falling >= levels][-1])


@dataclass(frozen=True)
class LinearAutoencoder:
    """PCA: the best linear autoencoder with k entries, and no limit to its rate (Baldi & Hornik, 1989).

    Attributes:
        mean: (D,), float64.
        directions: (k, D), float64, orthonormal rows.
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def fit(cls, x: Tensor, entries: int) -> LinearAutoencoder:
        """From samples ``x`` (N, D); N of them have at most N − 1 directions, fewer if some are alike, so that k is at
        most the smallest of ``entries``, D and N − 1.
        """
        x = x.double()
        mean = x.mean(0)
        centered = x - mean
        k = min(entries, x.shape[1], len(x) - 1)
        if x.shape[1] <= len(x):
            directions = torch.linalg.eigh(centered.T @ centered)[1][:, -k:].T
        else:
            values, vectors = (each[..., -k:] for each in torch.linalg.eigh(centered @ centered.T))
            there = values > 1e-10 * values[-1]
            directions = (centered.T @ vectors[:, there] / values[there].sqrt()).T
        return cls(mean, directions.flip(0).contiguous())

    def squared_error(self, x: Tensor) -> Tensor:
        """Squared error summed over the entries of each sample of ``x`` (N, D): (N,)."""
        centered = x.double() - self.mean
        return (centered**2).sum(1) - ((centered @ self.directions.T) ** 2).sum(1)
