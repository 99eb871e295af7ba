"""FID of samples of which several sets begin at the same noises, and by how much one's is above another's, with an
interval.

FID is no mean over samples, so that its uncertainty is a jackknife over groups of them: the same groups of all sets,
since what the noises do to all of them alike cancels in a difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldmprobe.analysis.intervals import NORMAL, jackknife
from ldmprobe.analysis.moments import group_of
from ldmprobe.errors import ConfigurationError
from ldmprobe.probing.quality import frechet_distance

_GROUPS = 16


def refuse_too_few_samples(num_samples: int) -> None:
    """Raise ConfigurationError for numbers that leave a group of the jackknife with less than two samples."""
    if num_samples < 2 * _GROUPS:
        raise ConfigurationError(
            f"num_samples is {num_samples}; expected at least {2 * _GROUPS}, since FIDs are compared by leaving out "
            f"each of {_GROUPS} groups of samples."
        )


def distances(real: Tensor, drawn: Tensor) -> Tensor:
    """Return the FID of all samples, and without each group of them, (1 + groups,); NaN where features are not finite.

    Args:
        real: features of real images, (M, F).
        drawn: those of samples, (N, F), of which the i-th of all sets has the same noise.
    """
    if not bool(torch.isfinite(drawn).all()):
        return torch.full((1 + _GROUPS,), torch.nan, dtype=torch.float64)
    group = group_of(torch.arange(len(drawn)), _GROUPS)
    parts = [drawn, *(drawn[group != k] for k in range(_GROUPS))]
    return torch.tensor([frechet_distance(real, part) for part in parts], dtype=torch.float64)


def rise(found: Tensor, other: Tensor) -> tuple[float, float]:
    """Return by how much a FID is above another, and the half-width of its 95 % interval; both of ``distances``."""
    difference = found - other
    value, error = jackknife(difference[0], difference[1:])
    return float(value), NORMAL * float(error)


def above(found: Tensor, other: Tensor) -> float:
    """Return by how many standard errors of the difference a FID is above another; infinite where it is none."""
    value, half_width = rise(found, other)
    if half_width > 0:
        return value / (half_width / NORMAL)
    return 0.0 if value == 0 else np.inf


def near_lowest(found: Sequence[Tensor]) -> tuple[int, list[int]]:
    """Return which FID is the lowest, and which are within one standard error of it, itself among them; one that is not
    finite is neither.
    """
    values = [float(each[0]) for each in found]
    lowest = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
    return lowest, [k for k, each in enumerate(found) if k == lowest or above(each, found[lowest]) <= 1]
