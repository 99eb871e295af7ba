r"""What gradients at several noise levels have in common, read off their inner products.

There are K groups of n draws; :math:`g_{lk}` is the mean gradient of group k at level l. Groups share no draws, so that
products of *different* groups have no noise in common (U-statistics):

.. math::
    \langle \bar g_l, \bar g_m \rangle \approx \frac{1}{K(K-1)} \sum_{j \ne k} \langle g_{lj}, g_{mk} \rangle, \qquad
    \mathrm{E}\|g_l\|^2 \approx \|\bar g_l\|^2 + n \Big( \tfrac1K \sum_k \|g_{lk}\|^2 - \|\bar g_l\|^2 \Big)

without bias, the latter for one draw. Where a loss draws levels by p and weighs them by w, and G is
:math:`\mathrm{E}\|g\|^2`, the gradient of one draw has the second moment :math:`\mathrm{E}_p[w^2 G]`; of all
densities to draw by, each with the factor that leaves the mean gradient as it is, :math:`p\,w\sqrt G` has the least
(Cauchy–Schwarz), :math:`\mathrm{E}_p[w \sqrt G]^2`. The quotient is the ceiling of any sampler of levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmprobe.analysis.intervals import jackknife, student


@dataclass(frozen=True)
class GradientMoments:
    """Moments of the gradient of one draw at each of L levels.

    Attributes:
        square: E‖g‖², (L,).
        inner: inner products of the levels' mean gradients, (L, L).
    """

    square: Tensor
    inner: Tensor

    @classmethod
    def of(cls, gram: Tensor, draws: int) -> GradientMoments:
        """Estimate them from inner products of the groups' mean gradients, (L, K, L, K), of ``draws`` each."""
        groups = gram.shape[1]
        same_group = torch.einsum("lkmk->lm", gram)
        inner = (gram.sum((1, 3)) - same_group) / (groups * (groups - 1))
        mean = inner.diagonal()
        return cls(mean + draws * (same_group.diagonal() / groups - mean), inner)

    def cosines(self, shares: Tensor) -> Tensor:
        """Return the cosines between mixtures of levels' mean gradients, (B, B), the mixtures' shares being (B, L); NaN
        where a mean gradient is lost in its own noise.
        """
        products = shares @ self.inner @ shares.T
        norms = products.diagonal().clamp(min=0).sqrt()
        return torch.where(norms[:, None] * norms > 0, products / (norms[:, None] * norms), torch.nan)

    def ceiling(self, weight: Tensor, squared_weight: Tensor) -> Tensor:
        """Return E_p[w² G] ÷ E_p[w √G]², for p w and p w² of each level, (L,)."""
        return (squared_weight @ self.square) / (weight @ self.square.clamp(min=0).sqrt()) ** 2

    def noise_scale(self, weight: Tensor, squared_weight: Tensor) -> Tensor:
        """Return tr Σ ÷ ‖ḡ‖² of the whole loss: the batch size at which signal and noise of the gradient are even, the
        "simple noise scale" (McCandlish et al., 2018, arXiv:1812.06162); NaN where ‖ḡ‖² is lost in its own noise.
        """
        mean = weight @ self.inner @ weight
        return torch.where(mean > 0, (squared_weight @ self.square) / mean - 1, torch.nan)


def with_interval(gram: Tensor, draws: int, statistic: Callable[[GradientMoments], Tensor]) -> tuple[Tensor, Tensor]:
    """Return a statistic of the moments, and the half-width of its 95 % interval by the jackknife over groups."""
    groups = gram.shape[1]
    value = statistic(GradientMoments.of(gram, draws))
    others = ~torch.eye(groups, dtype=torch.bool)
    without = [statistic(GradientMoments.of(gram[:, kept][..., kept], draws)) for kept in others]
    _, error = jackknife(value, torch.stack(without))
    return value, student(groups) * error
