r"""A power law above a floor, extrapolated: how far a curve goes on falling, and an interval for what is measured then.

.. math:: y(t) = a + b\,t^{-c} + \text{scatter}, \qquad b \ge 0

Held-out losses fall like this over training steps at a constant learning rate (Hestness et al., 2017, arXiv:1712.00409;
Kaplan et al., 2020, arXiv:2001.08361). With c given, a and b are linear least squares; c is profiled: a value y(t*) is
in the interval if for some c in ``EXPONENTS`` the residual sum of squares of the fit that goes through it is at most
RSS_min (1 + F/ν), ν = K − 3, F the 95 % quantile of F(1, ν) (Seber & Wild, 1989, Nonlinear Regression, 5.3). At the
best c alone this is Student's interval of prediction, but for one thing: training departs from any such law, and goes
on to, so that m intervals between points ahead the departure is taken to be m times that of the residuals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import f as f_distribution

EXPONENTS = np.geomspace(0.05, 1, 200)
"""The exponents c that are tried, from all but a logarithm to what no loss falls faster by."""
FEWEST = 6  # points: three parameters leave three of them to tell the scatter by


@dataclass(frozen=True)
class Extrapolated:
    """A value that a curve will have, with the ends of its 95 % interval."""

    value: float
    lower: float
    upper: float


def extrapolate(t: np.ndarray, y: np.ndarray, until: float) -> Extrapolated:
    """Return what a measurement at ``until`` will be.

    Args:
        t: where the curve is known, (K,), above 0; K at least ``FEWEST``.
        y: its values, (K,).
        until: t*.

    Raises:
        ValueError: fewer points.
    """
    if len(t) < FEWEST:
        raise ValueError(f"got {len(t)} points; expected at least {FEWEST}")
    free, mean = len(t) - 3, y.mean()
    x = (t / t[-1]) ** -EXPONENTS[:, None]
    center = x.mean(1, keepdims=True)
    spread = ((x - center) ** 2).sum(1)
    slope = np.maximum((x - center) @ y / spread, 0.0)
    squares = ((y - mean - slope[:, None] * (x - center)) ** 2).sum(1)
    ahead = (until / t[-1]) ** -EXPONENTS - center[:, 0]
    values = mean + slope * ahead
    intervals = max((until - t[-1]) / (t[-1] - t[0]) * (len(t) - 1), 1.0)
    leverage = intervals**2 + 1 / len(t) + ahead**2 / spread
    best = int(squares.argmin())
    spare = squares[best] / free * f_distribution.ppf(0.95, 1, free) - (squares - squares[best])
    inside = spare >= 0
    width = np.sqrt(spare[inside] * leverage[inside])
    return Extrapolated(
        float(values[best]), float((values[inside] - width).min()), float((values[inside] + width).max())
    )
