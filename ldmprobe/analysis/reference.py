r"""The ideal process in closed form: what a *perfect* denoiser would show, so that no curve has to be read alone.

For data N(μ, diag λ) in the basis of its covariance, the exact denoiser makes every DDIM step linear. With a = ᾱ_t, b = 1 − a:

.. math::
    v_t = a_t \lambda + b_t, \qquad m = \frac{\sqrt{a_s a_t}\,\lambda + \sqrt{b_s b_t}}{v_t}, \qquad
    z_s - \sqrt{a_s}\mu = m\,(z_t - \sqrt{a_t}\mu)   \qquad (1)

Real latents are not Gaussian; the curves are those of the Gaussian with their mean and covariance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldmprobe.analysis.divergence import gaussian_kl


@dataclass(frozen=True)
class IdealDDIM:
    """Moments of the ideal DDIM path and of the forward process, per step and direction; all float64.

    Attributes:
        mean_t, var_t, mean_s, var_s: shape (S, D): the sampled latents before and after each step.
        forward_mean_t, forward_var_t, forward_mean_s, forward_var_s: the same levels of the forward process q.
    """

    mean_t: Tensor
    var_t: Tensor
    mean_s: Tensor
    var_s: Tensor
    forward_mean_t: Tensor
    forward_var_t: Tensor
    forward_mean_s: Tensor
    forward_var_s: Tensor

    def step_kl(self) -> Tensor:
        """KL(p_t ‖ p_s) of each step and direction, nats, (S, D)."""
        return gaussian_kl(self.mean_t, self.var_t, self.mean_s, self.var_s)

    def forward_step_kl(self) -> Tensor:
        """KL(q_t ‖ q_s) between the same two levels of the forward process, nats, (S, D)."""
        return gaussian_kl(self.forward_mean_t, self.forward_var_t, self.forward_mean_s, self.forward_var_s)


def ideal_ddim(
    mean: Tensor, variance: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor
) -> IdealDDIM:
    """The path of a perfect denoiser from z_T ~ N(0, I), eq. (1), along the levels of a sampling grid.

    Args:
        mean, variance: of real latents in a decorrelating basis, (D,).
        alpha_t, sigma_t, alpha_s, sigma_s: the levels of each step, (S,).
    """
    mu, lam = mean.double(), variance.double().clamp(min=0)
    path_mean, path_var = torch.zeros_like(mu), torch.ones_like(lam)
    rows = []
    for a_t, b_t, a_s, b_s in zip(*(level.double() for level in (alpha_t, sigma_t, alpha_s, sigma_s)), strict=True):
        v_t, v_s = a_t**2 * lam + b_t**2, a_s**2 * lam + b_s**2
        m = (a_s * a_t * lam + b_s * b_t) / v_t
        next_mean, next_var = a_s * mu + m * (path_mean - a_t * mu), m**2 * path_var
        rows.append((path_mean, path_var, next_mean, next_var, a_t * mu, v_t, a_s * mu, v_s))
        path_mean, path_var = next_mean, next_var
    return IdealDDIM(*(torch.stack(column) for column in zip(*rows, strict=True)))


def gaussian_mmse(variance: Tensor, log_snr: Tensor) -> Tensor:
    """Mean squared ε-error per dimension of the best *linear* denoiser: mean_i aλ_i/(aλ_i + b), shape of ``log_snr``.

    Args:
        variance: of real latents along each direction, (D,).
        log_snr: levels, any shape.
    """
    signal = variance.double().clamp(min=0) * log_snr.double().exp()[..., None]
    return (signal / (signal + 1)).mean(-1)
