"""Heun's method with churn: EDM's samplers."""

from __future__ import annotations

import math

import torch

from ldmprobe.diffusion.samplers.base import (
    Combine,
    Denoise,
    Move,
    Sampler,
    SamplerStep,
    denoise_at,
    denoise_between,
    moves,
)
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.errors import ConfigurationError, check_numbers


class Heun(Sampler):
    r"""Heun's method for dz̃/dσ̃ = ε̂ in z̃ = z/α over σ̃ = σ/α: the mean of ε̂ at both ends of each step (Karras et
    al., 2022, arXiv:2206.00364, algorithm 1), Euler's method in a step to the data, in one from no signal, 2 S − 1
    passes in all.

    With churn each step first goes back to σ̂ = (1 + γ) σ̃_t by fresh noise (algorithm 2):

    .. math::
        \hat z = \tilde z_t + S_{noise} \sqrt{\hat\sigma^2 - \tilde\sigma_t^2}\,\xi, \qquad
        \gamma = \min(S_{churn}/S, \sqrt 2 - 1) \;\text{where}\; S_{tmin} \le \tilde\sigma_t \le S_{tmax}

    The network is asked about ẑ, as in the paper; diffusers adds the noise after it was asked.

    Args:
        s_churn: S_churn, 0 for none.
        s_tmin, s_tmax: the σ̃ between which there is churn.
        s_noise: S_noise, above 1 to make up for detail lost.

    Raises:
        ConfigurationError: a setting is below 0, or S_tmin above S_tmax. σ̂ is at most the schedule's noisiest.
    """

    name = "heun"

    def __init__(
        self, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
    ) -> None:
        check_numbers("Heun", 0, s_churn=s_churn, s_tmin=s_tmin, s_noise=s_noise)
        check_numbers("Heun", 0, s_tmax=None if s_tmax == math.inf else s_tmax)
        if not s_tmin <= s_tmax:
            raise ConfigurationError(f"Heun got s_tmin {s_tmin} and s_tmax {s_tmax}; expected s_tmax the larger.")
        self.s_churn, self.s_tmin, self.s_tmax, self.s_noise = s_churn, s_tmin, s_tmax, s_noise

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        arrivals = iter(_arrivals(grid))
        churned = self._churned(grid)
        steps = []
        for k, move in enumerate(moves(grid)):
            operations: list[Denoise | Combine] = []
            first = denoise_at(grid, k)
            if k in churned:
                first = churned[k]
                back = first.alpha / move.alpha_t
                noise = self.s_noise * math.sqrt(first.sigma**2 - (back * move.sigma_t) ** 2)
                operations.append(Combine("z", {"z": back}, noise))
                move = Move(first.alpha, first.sigma, move.alpha_s, move.sigma_s)
            euler = {"x0": move.alpha_s, "epsilon": move.sigma_s}
            if not move.has_signal or not move.sigma_s:
                operations += [first, Combine("z", euler)]
            else:
                carried = move.alpha_s * move.sigma_t / move.alpha_t
                mean = {
                    "x0": move.alpha_s,
                    "epsilon": (carried + move.sigma_s) / 2,
                    "epsilon_s": (move.sigma_s - carried) / 2,
                }
                operations += [first, Combine("guess", euler), next(arrivals), Combine("z", mean)]
            steps.append(SamplerStep(tuple(operations)))
        return steps

    def _churned(self, grid: SamplingGrid) -> dict[int, Denoise]:
        """Return the questions at σ̂ by step, of those with churn."""
        gamma = min(self.s_churn / grid.of_steps, math.sqrt(2) - 1)
        sigma = grid.sigma_t / grid.alpha_t
        where = (sigma >= self.s_tmin) & (sigma <= self.s_tmax) & (grid.alpha_t > 0)
        if not gamma or not bool(where.any()):
            return {}
        lowest = float(grid.schedule.log_snr[grid.schedule.rising[0]])
        log_snr = (grid.log_snr[where] - 2 * math.log1p(gamma)).clamp(min=lowest)
        return dict(zip(torch.nonzero(where).flatten().tolist(), denoise_between(grid, log_snr), strict=True))


def _arrivals(grid: SamplingGrid) -> list[Denoise]:
    """Return the second questions, at the levels that steps arrive at, of those steps that have one."""
    two = (grid.alpha_t > 0) & (grid.sigma_s > 0)
    return denoise_between(grid, 2 * (grid.alpha_s / grid.sigma_s).log()[two], "guess", "_s")
