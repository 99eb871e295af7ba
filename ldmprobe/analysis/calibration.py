r"""The calibration residual R_t: how much of a noise level's loss could be removed by correcting the denoiser linearly.

For the optimal denoiser the error e = ε − ε_θ(z_t) is uncorrelated with every function of z_t. So whatever part of e a
regression on functions of z_t explains on *held-out* samples is error that training has yet to remove: a lower bound on
that level's excess loss, without sampling and without a reference model. Per direction i of a decorrelating basis,

.. math:: e_i \approx \beta_{i0} + \beta_{i1} z_{t,i} + \beta_{i2}\, \epsilon_{\theta,i}, \qquad
          R_t = \frac{\sum_i \text{explained}_i}{\sum_i \mathbb{E}\, e_i^2},

cross-fitted: β for one group of images comes from all the other groups. It sees only linear defects; it is 0 or
slightly below for a calibrated denoiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ldmprobe.analysis.intervals import student

NUM_FOLDS = 8


@dataclass(frozen=True)
class CalibrationSums:
    """Additive sums of the regression of e on (1, z, ε_θ), per fold of images and direction; float64.

    Attributes:
        n: (F,), samples per fold.
        gram: (F, D, 3, 3), Σ x xᵀ.
        cross: (F, D, 3), Σ x e.
        squares: (F, D), Σ e².
    """

    n: Tensor
    gram: Tensor
    cross: Tensor
    squares: Tensor

    @classmethod
    def from_samples(cls, error: Tensor, z: Tensor, prediction: Tensor, fold: Tensor) -> CalibrationSums:
        """Sums of samples in a decorrelating basis.

        Args:
            error, z, prediction: ε − ε_θ, z_t and ε_θ, each (N, D).
            fold: of each sample, (N,), 0 … 7. All draws of one image belong to one fold.
        """
        d = error.shape[1]
        zeros = partial(torch.zeros, dtype=torch.float64, device=error.device)
        n, gram, cross, squares = (zeros(NUM_FOLDS, *shape) for shape in ((), (d, 3, 3), (d, 3), (d,)))
        for f in range(NUM_FOLDS):
            mine = fold == f
            e, x1, x2 = (value[mine].double() for value in (error, z, prediction))
            n[f] = len(e)
            features = torch.stack([torch.ones_like(e), x1, x2], dim=-1)  # (n, D, 3)
            gram[f] = torch.einsum("ndi,ndj->dij", features, features)
            cross[f] = torch.einsum("ndi,nd->di", features, e)
            squares[f] = (e * e).sum(0)
        return cls(n, gram, cross, squares)

    def __add__(self, other: CalibrationSums) -> CalibrationSums:
        return CalibrationSums(
            self.n + other.n, self.gram + other.gram, self.cross + other.cross, self.squares + other.squares
        )

    def explained(self) -> Tensor:
        """Cross-fitted explained sum of squares per fold and direction, (F, D): Σ e² − Σ (e − xᵀβ)², β from the other
        folds.
        """
        gram, cross = self.gram.sum(0) - self.gram, self.cross.sum(0) - self.cross
        # z and ε_θ are nearly the same at high noise: a ridge far below sampling error keeps the solution finite.
        ridge = 1e-6 * gram.diagonal(dim1=-2, dim2=-1).clamp(min=1e-12)
        beta = torch.linalg.solve(gram + torch.diag_embed(ridge), cross)
        explained: Tensor = 2 * (beta * self.cross).sum(-1) - torch.einsum("fdi,fdij,fdj->fd", beta, self.gram, beta)
        return explained


def cross_fit_cost(num_draws: int) -> float:
    """Return how far below the true share R lies on average, at most, at a share of 0: three coefficients fitted to
    nothing on 7 of 8 folds.

    At a share R it is (1 − R) times as much.
    """
    return 3 * NUM_FOLDS / ((NUM_FOLDS - 1) * num_draws)


@dataclass(frozen=True)
class Calibration:
    """R_t of one noise level.

    Attributes:
        residual: R_t, the explained share of the squared error.
        half_width: of the 95 % interval, over folds of images, of what a regression on this many samples explains: the
            true share is higher by about (1 − R)·16/(7 N).
        excess: explained squared error per dimension and sample, in ε-units.
        mse: squared error per dimension and sample.
    """

    residual: float
    half_width: float
    excess: float
    mse: float


def calibration(sums: CalibrationSums) -> Calibration:
    """R_t from its sums, over all directions."""
    explained, squares = sums.explained().sum(1), sums.squares.sum(1)
    count = float(sums.n.sum()) * sums.squares.shape[1]
    residual = float(explained.sum() / squares.sum())
    used = sums.n > 0
    folds = int(used.sum())
    deviation = (explained - residual * squares)[used]
    spread = float((folds / max(folds - 1, 1) * (deviation**2).sum()).sqrt() / squares.sum())
    return Calibration(
        residual, student(max(folds, 2)) * spread, float(explained.sum()) / count, float(squares.sum()) / count
    )
