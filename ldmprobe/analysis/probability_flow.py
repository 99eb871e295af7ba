r"""Log-density of latents under the probability flow (Song et al., 2021, arXiv:2011.13456, eq. 39), for any process.

With y = z/α, s = σ/α and u = ln s, the flow and the log-density along it are

.. math:: \frac{dy}{du} = s\,\hat\epsilon, \qquad
          \frac{d \log p(y)}{du} = -\operatorname{tr} \frac{d (s\,\hat\epsilon)}{dy}
                                 = -\sigma \operatorname{tr} \frac{\partial \hat\epsilon}{\partial z},

whatever the table of α and σ: the log-SNR −2u is all that the process adds. The trace is estimated from one
Rademacher vector a latent (Hutchinson; Grathwohl et al., 2019, arXiv:1810.01367), the same along the whole path. The
steps are fixed ones of the classical fourth-order Runge-Kutta method, so that no latent's density depends on those that
are computed beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Slope = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(y (N, …), number of a level) → s ε̂ (N, …), and σ tr ∂ε̂/∂z (N,)."""


@dataclass(frozen=True)
class FlowPath:
    """The end of the flow from latents, and the change of their log-density on the way.

    Attributes:
        end: y at the noisiest level, (N, …).
        lost: ∫ σ tr ∂ε̂/∂z du from the cleanest level to the noisiest, nats, (N,).
        divergence: σ tr ∂ε̂/∂z at the start of each step, (S, N).
    """

    end: Tensor
    lost: Tensor
    divergence: Tensor


def levels_of_path(log_snr_max: float, log_snr_min: float, num_steps: int) -> Tensor:
    """Return the levels that S steps ask about, cleanest first: uniform in log-SNR, with the middle of each step,
    (2 S + 1,).
    """
    return torch.linspace(log_snr_max, log_snr_min, 2 * num_steps + 1, dtype=torch.float64)


def flow_path(slope: Slope, y: Tensor, log_snr: Tensor) -> FlowPath:
    """Follow the flow from data to noise.

    Args:
        slope: of the flow.
        y: latents at the cleanest level, (N, …), float64.
        log_snr: as ``levels_of_path`` returns them.
    """
    u = (-log_snr / 2).tolist()
    lost, divergences = torch.zeros(len(y), dtype=torch.float64, device=y.device), []
    for k in range(0, len(u) - 1, 2):
        h = u[k + 2] - u[k]
        k1, d1 = slope(y, k)
        k2, d2 = slope(y + h / 2 * k1, k + 1)
        k3, d3 = slope(y + h / 2 * k2, k + 1)
        k4, d4 = slope(y + h * k3, k + 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        lost = lost + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        divergences.append(d1)
    return FlowPath(y, lost, torch.stack(divergences))


def gaussian_nats(y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return −log N(y; mean, variance) of each latent (N, D) with independent entries, nats, (N,)."""
    return 0.5 * ((y - mean) ** 2 / variance + (2 * torch.pi * variance).log()).sum(1)
