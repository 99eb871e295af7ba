"""UniPC: a predictor and a corrector that cost one pass together."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np

from ldmprobe.diffusion.samplers.base import Combine, Move, Sampler, SamplerStep, denoise_at, moves
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.errors import ConfigurationError


class UniPC(Sampler):
    r"""UniPC with B(h) = e^{−h} − 1, "bh2", for x̂_0 (Zhao et al., 2023, arXiv:2302.04867, algorithms 1 to 3). A step
    predicts z_s from the answers up to t. The network is asked once about z_s: its answer first corrects z_s, and then
    serves the next prediction. With D_j = (x̂_0(t_j) − x̂_0(t))/r_j, r_j = (λ̄_j − λ̄_t)/h, over earlier answers, and in
    the corrector over the one at s, too,

    .. math:: z_s = \frac{\sigma_s}{\sigma_t} z_t - \alpha_s (e^{-h} - 1)\,\hat x_0
              - \alpha_s B(h) \sum_j \rho_j D_j

    where ρ solves the order conditions (eq. 5). Order and its fall over the last steps are diffusers'.

    Args:
        order: 1, 2 or 3, of the predictor; the corrector is of one more.

    Raises:
        ConfigurationError: there is no such order.
    """

    name = "unipc"

    def __init__(self, order: int = 2) -> None:
        if order not in (1, 2, 3):
            raise ConfigurationError(f"UniPC got order {order}; expected 1, 2 or 3.")
        self.order = order

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        steps: list[SamplerStep] = []
        rises: list[float] = []  # h of the steps before this one, the last first, as far as there was signal
        before, order = None, 0
        for k, move in enumerate(moves(grid)):
            names = [f"x0_{(k - j) % (self.order + 1)}" for j in range(self.order + 1)]
            if before is None:
                correct = Combine("base", {"z": 1.0})
            else:
                z, *weights = _weights(before, rises[1:], order, corrects=True)
                correct = Combine("base", {"base": z, **dict(zip(names, weights, strict=False))})
            order = min(self.order, grid.num_steps - k, len(rises) + 1)
            z, *weights = _weights(move, rises, order, corrects=False)
            predict = Combine("z", {"base": z, **dict(zip(names, weights, strict=False))})
            steps.append(SamplerStep((denoise_at(grid, k, names[0]), correct, predict)))
            rises = [move.h, *rises] if move.has_signal else []
            before = move
        return steps


def _weights(move: Move, rises: list[float], order: int, corrects: bool) -> list[float]:
    """Return the coefficients of the latents at t and of the answers, newest first: a corrector's first is at s.

    Args:
        rises: h of the steps before, the last first.
    """
    growth = move.decay - 1  # e^(−h) − 1, and B(h)
    places = [-each / move.h for each in accumulate(rises[: order - 1])]
    rho = _rho(move.h, [*places, 1.0] if corrects else places)
    differences = [-move.alpha_s * growth * share / place for share, place in zip(rho, places, strict=False)]
    new = [-move.alpha_s * growth * rho[-1]] if corrects else []
    now = -move.alpha_s * growth - sum(differences) - sum(new)
    return [move.sigma_s / move.sigma_t, *new, now, *differences]


def _rho(h: float, places: list[float]) -> list[float]:
    """Solve Σ_j ρ_j r_j^(i−1) = b_i, i = 1 … as many as there are places r_j."""
    number = len(places)
    if number == 1:
        return [0.5]  # of one answer beside x̂_0 both methods take the simple mean
    if not number:
        return []
    values, phi, factorial = [], math.expm1(-h) / -h - 1, 1
    for i in range(1, number + 1):
        values.append(phi * factorial / math.expm1(-h))
        factorial *= i + 1
        phi = phi / -h - 1 / factorial
    powers = np.vander(places, number, increasing=True).T
    solution: list[float] = np.linalg.solve(powers, values).tolist()
    return solution
