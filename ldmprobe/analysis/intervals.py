r"""Intervals of 95 %: of means over draws that are not independent, and of any statistic by the jackknife.

Draws of one image g are not independent; the standard error of their mean sums them per image first (cluster-robust;
Liang & Zeger, 1986) and is read with Student's t:

.. math:: \widehat{\text{se}}^2 = \frac{G}{G-1} \frac{1}{N^2} \sum_{g=1}^{G}
    \Big( \sum_{n \in g} (d_n - \bar d) \Big)^2,
          \qquad \bar d / \widehat{\text{se}} \sim t_{G-1}

The jackknife's error is read with the normal distribution, `NORMAL` standard errors: at its 32 groups Student's factor
would be 4 % larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

NORMAL = 1.96
"""Standard errors in the half-width of a 95 % interval, by the normal distribution."""


@cache
def student(groups: int, tail: float = 0.025) -> float:
    """Return the standard errors in the half-width of an interval of a mean over independent groups, by Student's t.

    Args:
        tail: the probability of each side that is outside; that of a 95 % interval by default.
    """
    return float(student_t.ppf(1 - tail, groups - 1))


def clustered_half_width(values: Tensor, cluster: Tensor) -> Tensor:
    """Return the half-width of the 95 % interval of the mean of ``values`` (N, ...) over draws that are independent
    between clusters only.

    Args:
        cluster: the cluster of each draw, (N,).
    """
    sums = _sums(values, cluster)
    groups = len(sums)
    return student(groups) * (groups / (groups - 1) * (sums**2).sum(0)).sqrt() / len(values)


def clustered_pair_widths(values: Tensor, cluster: Tensor) -> Tensor:
    """Return the half-widths of the 95 % intervals of the differences between means of ``values`` (N, L), (L, L), each
    of the same draws.

    Args:
        cluster: the cluster of each draw, (N,).
    """
    sums = _sums(values, cluster)
    groups, products = len(sums), sums.T @ sums
    squares = products.diagonal()
    apart = (squares[:, None] + squares - 2 * products).clamp(min=0)
    return student(groups) * (groups / (groups - 1) * apart).sqrt() / len(values)


def _sums(values: Tensor, cluster: Tensor) -> Tensor:
    """Return the sums of each cluster's deviations from the mean, (G, ...)."""
    _, member = cluster.unique(return_inverse=True)
    zeros = torch.zeros(int(member.max()) + 1, *values.shape[1:], dtype=values.dtype)
    return zeros.index_add_(0, member, values - values.mean(0))


@dataclass(frozen=True)
class ClusteredMean:
    """Means over draws, shape (...), with the half-widths of their 95 % intervals and the two-sided p-values of "it is
    0".
    """

    value: np.ndarray
    half_width: np.ndarray
    p_value: np.ndarray


def clustered_mean(values: np.ndarray, cluster: np.ndarray) -> ClusteredMean:
    """Return the mean of ``values`` (..., N) over draws that are independent between clusters only.

    Args:
        cluster: the cluster of each draw, (N,).

    Raises:
        ValueError: there are fewer than two clusters, and so no interval.
    """
    values = np.asarray(values, dtype=np.float64)
    clusters = len(np.unique(cluster))
    if clusters < 2:
        raise ValueError(f"got draws of {clusters} cluster; expected at least 2, or there is no interval")
    mean = values.mean(-1)
    draws = torch.from_numpy(np.moveaxis(values, -1, 0).copy())
    half_width = clustered_half_width(draws, torch.from_numpy(np.asarray(cluster))).numpy()
    with np.errstate(invalid="ignore", divide="ignore"):  # a network that has diverged
        p_value = 2 * student_t.sf(np.abs(mean) / half_width * student(clusters), clusters - 1)
    p_value = np.where((mean == 0) & (half_width == 0), 1.0, p_value)  # the same network twice
    return ClusteredMean(mean, half_width, p_value)


def jackknife(value: Tensor, leave_one_out: Tensor) -> tuple[Tensor, Tensor]:
    """Return a statistic corrected for its bias of first order in 1/N, and its standard error, from G delete-a-group
    replicates.

    See Efron & Tibshirani (1993), ch. 11. Where there are no replicates, of known moments, it is returned as it is,
    with error 0.

    Args:
        value: the statistic on all samples, shape (...).
        leave_one_out: the statistic without each group, shape (G, ...).
    """
    groups = leave_one_out.shape[0]
    if groups < 2:
        return value, torch.zeros_like(value)
    mean = leave_one_out.mean(0)
    error = ((groups - 1) / groups * ((leave_one_out - mean) ** 2).sum(0)).sqrt()
    return value - (groups - 1) * (mean - value), error


def jackknife_interval(value: Tensor, leave_one_out: Tensor, factor: float = NORMAL) -> tuple[Tensor, Tensor]:
    """Return the ends of the 95 % interval of a statistic as it is, with ``factor`` times the error of `jackknife`;
    where there are few groups, Student's.
    """
    half_width = factor * jackknife(value, leave_one_out)[1]
    return value - half_width, value + half_width
