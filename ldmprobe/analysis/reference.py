r"""The ideal process in closed form: what a *perfect* denoiser would show, so that no curve has to be read alone.

For data N(μ, diag λ) in the basis of its covariance, the exact denoiser makes every DDIM step linear. With a = ᾱ_t, b = 1 − a:

.. math::
    v_t = a_t \lambda + b_t, \qquad m = \frac{\sqrt{a_s a_t}\,\lambda + \sqrt{b_s b_t}}{v_t}, \qquad
    z_s - \sqrt{a_s}\mu = m\,(z_t - \sqrt{a_t}\mu)   \qquad (1)

Real latents are not Gaussian; the curves are those of the Gaussian with their mean and covariance. That covariance is known from finitely
many latents, and along directions that are not quite its eigenvectors. Along such a direction u the perfect path's variance is uᵀ M² u,
M = Π m(Σ), a mean of Π m(τ)² over the eigenvalues that make up u's variance (:func:`ldmprobe.analysis.spectrum.spectral_measures`).
:func:`ideal_curves` takes what the latents' number adds to a curve off it, and gives it an interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmprobe.analysis.basis import LatentBasis
from ldmprobe.analysis.divergence import gaussian_kl
from ldmprobe.analysis.moments import jackknife


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
    mean: Tensor,
    variance: Tensor,
    alpha_t: Tensor,
    sigma_t: Tensor,
    alpha_s: Tensor,
    sigma_s: Tensor,
    eigenvalues: Tensor | None = None,
    weights: Tensor | None = None,
) -> IdealDDIM:
    """The path of a perfect denoiser from z_T ~ N(0, I), eq. (1), along the levels of a sampling grid.

    Args:
        mean, variance: of real latents along each direction, (D,).
        alpha_t, sigma_t, alpha_s, sigma_s: the levels of each step, (S,).
        eigenvalues, weights: how each direction's variance is made up of the covariance's eigenvalues, (A,) and (D, A), as in
            :class:`~ldmprobe.analysis.basis.LatentBasis`; default: each direction is an eigenvector.
    """
    mu, lam = mean.double(), variance.double().clamp(min=0)
    weight = torch.ones(len(lam), 1, dtype=torch.float64) if weights is None else weights.double()
    atoms = torch.ones(1, dtype=torch.float64) if eigenvalues is None else eigenvalues.double()
    tau = atoms * (lam / (weight @ atoms))[:, None]  # (D, A), with mean λ
    path, gain = torch.zeros_like(tau), torch.ones_like(tau)  # mean, and Π m, of each
    path_mean, path_var = torch.zeros_like(mu), torch.ones_like(lam)
    rows = []
    for a_t, b_t, a_s, b_s in zip(*(level.double() for level in (alpha_t, sigma_t, alpha_s, sigma_s)), strict=True):
        v_t, v_s = a_t**2 * lam + b_t**2, a_s**2 * lam + b_s**2
        m = (a_s * a_t * tau + b_s * b_t) / (a_t**2 * tau + b_t**2)
        path, gain = a_s * mu[:, None] + m * (path - a_t * mu[:, None]), gain * m
        next_mean, next_var = (weight * path).sum(1), (weight * gain**2).sum(1)
        rows.append((path_mean, path_var, next_mean, next_var, a_t * mu, v_t, a_s * mu, v_s))
        path_mean, path_var = next_mean, next_var
    return IdealDDIM(*(torch.stack(column) for column in zip(*rows, strict=True)))


def ideal_curves(
    basis: LatentBasis, levels: tuple[Tensor, Tensor, Tensor, Tensor], curves_of: Callable[[IdealDDIM], Tensor]
) -> tuple[Tensor, Tensor]:
    """Positive numbers read off the ideal path, corrected for the finite number of latents by the jackknife of their logarithms, and the
    half-widths of their 95 % intervals.

    Args:
        levels: α_t, σ_t, α_s and σ_s of each step.
        curves_of: the numbers of one path, of any shape.
    """

    def logarithm(mean: Tensor, variance: Tensor) -> Tensor:
        path = ideal_ddim(mean, variance, *levels, basis.eigenvalues, basis.weights)
        return curves_of(path).clamp(min=1e-300).log()

    whole = logarithm(basis.mean, basis.variance)
    moments = zip(basis.mean_without, basis.variance_without, strict=True)
    without = [logarithm(mean, variance) for mean, variance in moments]
    value, error = jackknife(whole, torch.stack(without) if without else whole[None])
    return value.exp(), value.exp() * (1.96 * error).expm1()
