"""A fixed orthonormal basis in which real latents are (nearly) uncorrelated, and their moments along it.

Statistics per direction see small directions only if these are not mixed with large ones: in the pixel basis a diagonal
KL sees 1–5 % of a change in the low-variance directions.

Variances along directions that the same latents chose are biased: too large along the first, too small along the last.
So one half of the latents chooses the directions, and the other half, to which they are then as good as given, measures
along them. Every choice is valid; a poor one only sees less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ldmprobe.analysis.intervals import jackknife
from ldmprobe.analysis.spectrum import LinearOptimum, Ridges, spectral_measures

MAX_PCA_DIMENSION = 4096
NUM_GROUPS = 16  # of latents; leaving out each gives the moments' own uncertainty
VARIANCE_FLOOR = 1e-8  # of the largest variance: a direction with less does not vary, but for rounding


@lru_cache(maxsize=16)
def _dct_matrix(n: int) -> Tensor:
    """Orthonormal DCT-II matrix (n, n), float64; rows are frequencies."""
    k = torch.arange(n, dtype=torch.float64)
    matrix: Tensor = torch.cos(torch.pi / n * (k[None, :] + 0.5) * k[:, None]) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


@dataclass(frozen=True)
class Rotation:
    """Orthonormal directions for latents of shape (C, H, W), D = C·H·W of them.

    Attributes:
        kind: "pca", or "dct" (PCA over channels times a 2-D cosine transform over space) where D is large or latents
            are few.
        shape: (C, H, W).
        matrix: (D, D) rows are directions for "pca"; (C, C) over channels for "dct"; float64.
    """

    kind: str
    shape: tuple[int, ...]
    matrix: Tensor

    @classmethod
    def cosine(cls, shape: tuple[int, ...]) -> Rotation:
        """A 2-D cosine transform per channel: decorrelates natural latents well enough without having seen any."""
        return cls("dct", shape, torch.eye(shape[0], dtype=torch.float64))

    def __call__(self, z: Tensor) -> Tensor:
        """Coordinates of latents ``z`` (N, C, H, W): (N, D), same dtype. An isometry."""
        matrix = self.matrix.to(z.device, z.dtype)
        if self.kind == "pca":
            return z.flatten(1) @ matrix.T
        z = torch.einsum("kc,nc...->nk...", matrix, z)
        if z.ndim == 4:
            rows, columns = (_dct_matrix(size).to(z.device, z.dtype) for size in z.shape[2:])
            z = rows @ z @ columns.T
        return z.flatten(1)

    def inverse(self, coordinates: Tensor) -> Tensor:
        """Latents (N, C, H, W) of coordinates (N, D), same dtype."""
        matrix = self.matrix.to(coordinates.device, coordinates.dtype)
        if self.kind == "pca":
            return (coordinates @ matrix).view(-1, *self.shape)
        z = coordinates.view(-1, *self.shape)
        if z.ndim == 4:
            rows, columns = (_dct_matrix(size).to(z.device, z.dtype) for size in z.shape[2:])
            z = rows.T @ z @ columns
        return torch.einsum("kc,nk...->nc...", matrix, z)


@dataclass(frozen=True)
class LatentBasis:
    """Directions, real latents' moments along them, and the spectrum behind these.

    Attributes:
        rotation: the directions.
        order: which has the largest variance, the second largest …, (D,), as the other half of the latents has it: in
            the order of measured variances the first would be too large by chance.
        mean, variance: along each direction, (D,), float64; unbiased, where the directions are not of the latents
            measured.
        mean_without, variance_without: the same without each of G groups of latents, (G, D); G = 0 where moments are
            known.
        eigenvalues, weights: how each direction's variance is made up of the covariance's eigenvalues
            (``spectral_measures``): τ, (A,), and w, (D, A), the former to be scaled to the direction's own variance;
            one of weight 1 for an eigenvector.
        optimum: error of the best linear denoiser, from all latents.
    """

    rotation: Rotation
    order: Tensor
    mean: Tensor
    variance: Tensor
    mean_without: Tensor
    variance_without: Tensor
    eigenvalues: Tensor
    weights: Tensor
    optimum: LinearOptimum

    @classmethod
    def known(cls, rotation: Rotation, mean: Tensor, variance: Tensor) -> LatentBasis:
        """Return the basis of latents whose covariance is diagonal in these directions, known exactly."""
        none = torch.empty(0, len(mean), dtype=torch.float64)
        one, weights = torch.ones(1, dtype=torch.float64), torch.ones(len(mean), 1)
        order, optimum = variance.argsort(descending=True), LinearOptimum.of_spectrum(variance)
        return cls(rotation, order, mean, variance, none, none, one, weights, optimum)

    @classmethod
    def fit(cls, latents: Tensor) -> LatentBasis:
        """From real latents (N, C, H, W): PCA where D ≤ 4096 and N ≥ 2 D, else channel-PCA × 2-D DCT."""
        n, *shape = latents.shape
        d = latents[0].numel()
        x = latents.detach().cpu()
        x = x.double() if d <= MAX_PCA_DIMENSION else x.float()
        choosing, measuring = x[::2], x[1::2]
        if d <= MAX_PCA_DIMENSION and n >= 2 * d:
            rotation = Rotation("pca", tuple(shape), _principal(choosing.flatten(1)))
        else:
            rotation = Rotation("dct", tuple(shape), _principal(choosing.movedim(1, -1).flatten(0, -2).double()))
        order = rotation(choosing).var(0).argsort(descending=True)
        coordinates = rotation(measuring)
        own = Ridges.of(coordinates - coordinates.mean(0))
        overlaps = own.overlaps(coordinates - coordinates.mean(0))
        ridges = Ridges.of(x.flatten(1) - x.flatten(1).mean(0))
        coordinates = coordinates.double()
        mean, variance = coordinates.mean(0), coordinates.var(0)
        mean_without, variance_without = _without_each_group(coordinates)
        alive = variance > VARIANCE_FLOOR * variance.max()
        eigenvalues, weights = torch.ones(1, dtype=torch.float64), torch.ones(d, 1)
        if alive.any():
            eigenvalues, of_alive = spectral_measures(own, own.along(overlaps[alive]), variance[alive])
            weights = torch.zeros(d, len(eigenvalues))
            weights[:, 0], weights[alive] = 1, of_alive
        optimum = LinearOptimum.of_sample(ridges, len(measuring), variance)
        return cls(rotation, order, mean, variance, mean_without, variance_without, eigenvalues, weights, optimum)

    @property
    def kind(self) -> str:
        return self.rotation.kind

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rotation.shape

    @property
    def varies(self) -> Tensor:
        """Return whether real latents vary along each direction by more than rounding: 1e-8 of the largest variance,
        (D,). KL is not defined along others: they are left out of it, and counted.
        """
        return self.variance > VARIANCE_FLOOR * self.variance.max()

    def bands(self, number: int) -> list[Tensor]:
        """Return the directions along which real latents vary in ``number`` equal parts, by falling variance."""
        falling = self.order[self.varies[self.order]]
        return [band for band in falling.tensor_split(number) if len(band)]

    def jackknife(self, statistic: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return a statistic of real latents' mean and variance along the directions, corrected for their finite
        number, and its standard error.
        """
        moments = zip(self.mean_without, self.variance_without, strict=True)
        without = [statistic(mean, variance) for mean, variance in moments]
        whole = statistic(self.mean, self.variance)
        return jackknife(whole, torch.stack(without) if without else whole[None])

    def rotate(self, z: Tensor) -> Tensor:
        """Coordinates of latents ``z`` (N, C, H, W): (N, D), same dtype."""
        return self.rotation(z)


def _principal(flat: Tensor) -> Tensor:
    """Principal directions of (N, D) as rows, largest variance first."""
    centered = flat - flat.mean(0)
    vectors: Tensor = torch.linalg.eigh(centered.T @ centered / max(len(flat) - 1, 1))[1]
    return vectors.flip(1).T.contiguous()


def _without_each_group(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance without each group of rows, (G, D)."""
    n = len(coordinates)
    groups = min(NUM_GROUPS, n)
    center = coordinates.mean(0)
    parts = [coordinates[g::groups] - center for g in range(groups)]
    sums, squares = (torch.stack([(part**power).sum(0) for part in parts]) for power in (1, 2))
    left = torch.tensor([n - len(part) for part in parts], dtype=torch.float64)[:, None]
    mean = (sums.sum(0) - sums) / left
    variance = (squares.sum(0) - squares - left * mean**2) / (left - 1)
    return center + mean, variance.clamp(min=0)
