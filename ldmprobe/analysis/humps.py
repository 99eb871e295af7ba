"""Humps: what a noise level has left that its neighbors on both sides have not.

Training leaves the two ends of the noise levels for last: what is still wrong falls from both ends towards the middle
(U-shaped over log-SNR), in every healthy run and at every length of training. A level that stands out from some level
on either side of it is therefore at fault itself, and its neighbors are its witnesses: no second run is needed.
"""

from __future__ import annotations

import numpy as np


def humps(value: np.ndarray, width: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    r"""Return how far each level surely stands out from some level on either side, (L,); negative where it does not,
    and minus infinity at the two ends.

    .. math:: h_l = \min\big(\max_{j<l} h_{lj}, \max_{k>l} h_{lk}\big), \qquad h_{lj} = v_l - v_j - w_{lj},

    but no more than :math:`v_l - w_l` over a level that is off to the other side, :math:`v_j < 0`.

    Args:
        value: v, how far each level is off to the side that is asked for, in order of log-SNR, (L,).
        width: w, what each can be off by, (L,).
        pairs: what the difference of each two can be off by, (L, L): of the same draws much less than both together.
    """
    over = value[:, None] - value - pairs
    over = np.where(value < 0, np.minimum(over, (value - width)[:, None]), over)
    places = np.arange(len(value))
    before = np.where(places[:, None] > places, over, -np.inf).max(1)
    after = np.where(places[:, None] < places, over, -np.inf).max(1)
    found: np.ndarray = np.minimum(before, after)
    return found
