"""Humps: what a noise level has left that its neighbors on both sides have not.

Training leaves the two ends of the noise levels for last: what is still wrong falls from both ends towards the middle
(U-shaped over log-SNR), in every healthy run and at every length of training. A level that stands out from some level
on either side of it is therefore at fault itself, and its neighbors are its witnesses: no second run is needed.
"""

from __future__ import annotations

import numpy as np


def humps(value: np.ndarray, width: np.ndarray) -> np.ndarray:
    r"""Return how far each level surely stands out from the lowest level on either side, (L,); negative where it does
    not, and minus infinity at the two ends.

    .. math:: h_l = (v_l - w_l) - \max\big(\min_{j<l}(v_j + w_j), \min_{k>l}(v_k + w_k)\big)

    Args:
        value, width: v ≥ 0 and what it can be off by, per level in order of log-SNR, (L,).
    """
    upper, infinity = value + width, np.array([np.inf])
    before = np.concatenate([infinity, np.minimum.accumulate(upper)[:-1]])
    after = np.concatenate([np.minimum.accumulate(upper[::-1])[::-1][1:], infinity])
    found: np.ndarray = value - width - np.maximum(before, after)
    return found
