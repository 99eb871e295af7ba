r"""Squared error in nats of the likelihood bound: the I-MMSE relation (Kong et al., 2023, arXiv:2302.03792).

.. math:: -\log p(x) \le c + \tfrac12 D \int \text{MSE}_\epsilon(\lambda)\, d\lambda
          \approx c' + \sum_k \tfrac12 D\, w_k\, \text{MSE}_\epsilon(\lambda_k),
    \qquad w_k = \tfrac12 (\lambda_{k+1} - \lambda_{k-1})

over log-SNR λ. A probe knows the integrand at its own levels λ_1 … λ_L, which are as far apart as the schedule's
timesteps allow; w is the trapezoid rule over these, in which the two ends have one neighbor each. The sum is the part
of the integral from λ_1 to λ_L and knows nothing of what lies beyond.
"""

from __future__ import annotations

import numpy as np


def nats_per_error(log_snr: np.ndarray, dimension: float) -> np.ndarray:
    """½ D w: the nats that one unit of squared ε-error per dimension costs at each level, (L,).

    Args:
        log_snr: the levels, (L,), in rising or falling order.
        dimension: D.
    """
    gap = np.abs(np.diff(np.asarray(log_snr, dtype=np.float64)))
    weights: np.ndarray = 0.25 * dimension * (np.append(gap, 0.0) + np.append(0.0, gap))
    return weights
