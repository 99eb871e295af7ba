"""Successive halving (Jamieson and Talwalkar, 2016): each method is tuned by the same budget, with seeds for the resource.

All candidates of a method are trained with one seed, the better half of them with two, the better half of those with
four, until one is left, which is trained with all. Whole trainings are compared, since a rate that is annealed over
half of the steps is another rate. The seeds that a candidate was chosen by are among those it is reported with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata


def rung_seeds(candidates: int, seeds: Sequence[int]) -> list[Sequence[int]]:
    """Return the seeds of each rung, the last with all of them; one rung for a single candidate."""
    halvings = candidates.bit_length() - 1
    return [*(seeds[: 2**rung] for rung in range(halvings)), seeds]


def mean_ranks(finals: Mapping[str, Mapping[int, Sequence[float]]]) -> dict[str, float]:
    """Return by candidate the mean over seeds and metrics of its rank, 1 the best; 1 for all where nothing is known.

    A rank, unlike a sum, needs no exchange rate of nats for FID. What a candidate lacks, or what is not finite, has the
    last rank.

    Args:
        finals: by candidate and seed, what it ended at in each metric; lower is better.
    """
    seeds = sorted({seed for each in finals.values() for seed in each})
    if not seeds:
        return dict.fromkeys(finals, 1.0)
    nothing = [np.inf] * max(len(values) for each in finals.values() for values in each.values())
    values = np.array([[each.get(seed, nothing) for seed in seeds] for each in finals.values()], dtype=float)
    ranks = rankdata(np.where(np.isnan(values), np.inf, values), axis=0)
    return dict(zip(finals, ranks.reshape(len(finals), -1).mean(1).tolist(), strict=True))


def better_half(finals: Mapping[str, Mapping[int, Sequence[float]]]) -> list[str]:
    """Return the candidates of the better half by mean rank, in their own order; of equals the first."""
    ranks = mean_ranks(finals)
    best = sorted(ranks, key=lambda name: ranks[name])[: max(len(finals) // 2, 1)]
    return [name for name in finals if name in best]
