"""Additive sums of paired samples, from which means and variances follow exactly, merged across groups, batches and
ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_GROUPS = 32  # of the jackknife
_SHIFT = 3  # of odd numbers below 32 the one that spreads up to 100 classes most evenly, as evenly as chance would


def group_of(sample_ids: Tensor, num_groups: int = NUM_GROUPS) -> Tensor:
    """Return the jackknife group of each sample by its number i, (N,): i + 3 ⌊i/G⌋ mod G, so that of G samples in a
    row one is in each.

    Conditions are given in turn, sample i of class i mod K: by i mod G alone a group of 32 would have half of ten
    classes, and leaving it out would change how many there are of each.
    """
    return (sample_ids + _SHIFT * (sample_ids // num_groups)) % num_groups


@dataclass(frozen=True)
class PairedMoments:
    """Counts and sums of x, y, x², y² and xy per direction, float64.

    Attributes:
        n: shape (..., 1).
        sums: shape (5, ..., D): Σx, Σy, Σx², Σy², Σxy. Leading dimensions are jackknife groups, if any.
    """

    n: Tensor
    sums: Tensor

    @classmethod
    def from_samples(cls, x: Tensor, y: Tensor, sample_ids: Tensor, num_groups: int = NUM_GROUPS) -> PairedMoments:
        """Sums per jackknife group of samples ``x``, ``y`` (N, D) numbered ``sample_ids`` (N,)."""
        groups = group_of(sample_ids, num_groups).to(x.device)
        n = torch.zeros(num_groups, 1, dtype=torch.float64, device=x.device)
        n.index_add_(0, groups, torch.ones(len(x), 1, dtype=torch.float64, device=x.device))
        sums = torch.zeros(5, num_groups, x.shape[1], dtype=torch.float64, device=x.device)
        x, y = x.double(), y.double()
        for total, values in zip(sums, (x, y, x * x, y * y, x * y), strict=True):
            total.index_add_(0, groups, values)
        return cls(n, sums)

    def __add__(self, other: PairedMoments) -> PairedMoments:
        return PairedMoments(self.n + other.n, self.sums + other.sums)

    def summed(self, all_reduce_sum: Callable[[Tensor], Tensor]) -> PairedMoments:
        """Those of all ranks together."""
        return PairedMoments(all_reduce_sum(self.n), all_reduce_sum(self.sums))

    def total(self) -> PairedMoments:
        """All groups together."""
        return PairedMoments(self.n.sum(0), self.sums.sum(1))

    def leave_one_out(self) -> PairedMoments:
        """For each group, everything but it."""
        return PairedMoments(self.n.sum(0) - self.n, self.sums.sum(1, keepdim=True) - self.sums)

    @property
    def mean_x(self) -> Tensor:
        return self.sums[0] / self.n

    @property
    def mean_y(self) -> Tensor:
        return self.sums[1] / self.n

    @property
    def var_x(self) -> Tensor:
        """Unbiased variance (divisor n − 1)."""
        return (self.sums[2] - self.sums[0] ** 2 / self.n) / (self.n - 1)

    @property
    def var_y(self) -> Tensor:
        return (self.sums[3] - self.sums[1] ** 2 / self.n) / (self.n - 1)

    @property
    def varies(self) -> Tensor:
        """Return whether both sides vary in each direction, beyond the rounding of their sums."""
        floor = 1e-12 * self.sums[2:4] / self.n
        return (self.var_x > floor[0]) & (self.var_y > floor[1])

    @property
    def cov_xy(self) -> Tensor:
        return (self.sums[4] - self.sums[0] * self.sums[1] / self.n) / (self.n - 1)
