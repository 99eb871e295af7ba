"""Principal components: fitted once on real latents, sign-fixed, then only projected on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PCABasis:
    """The leading k principal components of a set of vectors.

    Attributes:
        mean: shape (D,), float32.
        components: shape (k, D), float32, orthonormal rows, largest variance first, each with its entry of largest
            magnitude positive.
        variance: shape (k,), float64, along each component.
        total_variance: summed over all D directions.
    """

    mean: Tensor
    components: Tensor
    variance: Tensor
    total_variance: float

    @classmethod
    def fit(cls, x: Tensor, num_components: int = 2) -> PCABasis:
        """Exact leading components of ``x`` (N, D), by ARPACK (scipy.sparse.linalg.svds); randomized solvers are far
        off where the spectrum is flat.

        Raises:
            ValueError: fewer samples than ``num_components`` + 2.
        """
        from scipy.linalg import svd
        from scipy.sparse.linalg import svds

        n, d = x.shape
        if n < num_components + 2:
            raise ValueError(f"PCABasis.fit got {n} samples; expected at least {num_components + 2}.")
        data = x.detach().cpu().numpy().astype(np.float64)
        mean = data.mean(0)
        centered = data - mean
        if 2 * num_components < min(n, d):
            _, singular, vt = svds(centered, k=num_components, v0=np.random.default_rng(0).standard_normal(min(n, d)))
            order = np.argsort(-singular)
            singular, vt = singular[order], vt[order]
        else:
            _, singular, vt = svd(centered, full_matrices=False)
            singular, vt = singular[:num_components], vt[:num_components]
        largest = np.abs(vt).argmax(1)
        vt = vt * np.sign(vt[np.arange(len(vt)), largest])[:, None]
        return cls(
            torch.from_numpy(mean).float(),
            torch.from_numpy(np.ascontiguousarray(vt)).float(),
            torch.from_numpy(singular**2 / (n - 1)),
            float((centered**2).sum() / (n - 1)),
        )

    @property
    def explained(self) -> Tensor:
        """Share of the total variance along each component, shape (k,)."""
        return self.variance / self.total_variance

    def project(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Coordinates of ``x`` (N, D) about ``scale`` · mean: shape (N, k). For z_t, scale is α_t."""
        components = self.components.to(x.device, x.dtype)
        return x @ components.T - scale * (self.mean.to(x.device, x.dtype) @ components.T)
