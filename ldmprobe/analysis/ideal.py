r"""The ideal of any sampler: its own program, run on the moments of Gaussian data instead of on latents.

For data N(μ, ℓ) in one direction of the basis of its covariance, the exact denoiser is affine. With v = α²ℓ + σ²,

.. math::
    \hat x_0 = \mu + \frac{\alpha \ell}{v}\,(z - \alpha\mu),
    \qquad \hat\epsilon = \frac{\sigma}{v}\,(z - \alpha\mu)   \qquad (1)

A ``Sampler``'s other operation is affine, too, so that every register stays Gaussian: its mean, its
response to z_T and the covariances of what the sampler's own noise adds follow exactly, whatever the sampler, the grid
and the number of steps. For DDIM this composes to

.. math::
    z_s - \alpha_s\mu = \frac{\alpha_s \alpha_t \ell + \sigma_s \sigma_t}{v_t}\,(z_t - \alpha_t\mu)   \qquad (2)

Real latents are not Gaussian; the curves are those of the Gaussian with their mean and covariance. That covariance is
known from finitely many latents, and along directions that are not quite its eigenvectors. Along such a direction the
perfect path's moments are means over the eigenvalues that make up its variance (``spectral_measures``).
``ideal_curves`` takes what the latents' number adds to a curve off it, and gives it an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import torch
from torch import Tensor

from ldmprobe.analysis.basis import LatentBasis
from ldmprobe.analysis.divergence import gaussian_kl
from ldmprobe.analysis.intervals import NORMAL
from ldmprobe.diffusion.samplers import Combine, Denoise, SamplerStep
from ldmprobe.diffusion.schedule import SamplingGrid


@dataclass(frozen=True)
class IdealPath:
    """Moments of a sampler's ideal path and of the forward process, per step and direction; all float64.

    Attributes:
        mean_t, var_t, mean_s, var_s: shape (S, D): the sampled latents before and after each step.
        forward_mean_t, forward_var_t, forward_mean_s, forward_var_s: the same levels of the forward process q.
        epsilon_square, forward_epsilon_square: E ε̂² of the exact denoiser, eq. (1), at the last question of each step,
            and asked about q at the same level.
    """

    mean_t: Tensor
    var_t: Tensor
    mean_s: Tensor
    var_s: Tensor
    forward_mean_t: Tensor
    forward_var_t: Tensor
    forward_mean_s: Tensor
    forward_var_s: Tensor
    epsilon_square: Tensor
    forward_epsilon_square: Tensor

    def step_kl(self) -> Tensor:
        """Return KL(p_t ‖ p_s) of each step and direction, nats, (S, D)."""
        return gaussian_kl(self.mean_t, self.var_t, self.mean_s, self.var_s)

    def forward_step_kl(self) -> Tensor:
        """Return KL(q_t ‖ q_s) between the same two levels of the forward process, nats, (S, D)."""
        return gaussian_kl(self.forward_mean_t, self.forward_var_t, self.forward_mean_s, self.forward_var_s)


class Registers:
    """Named Gaussian variables with independent entries, r = mean + slope · z_T + noise, z_T ~ N(0, prior_std²).

    Attributes:
        mean, slope: by name, each of the shape of the entries.
        noise: covariances of what the steps' own noise adds, by pair of names in either order; a pair that is not there
            has none.
    """

    def __init__(self, like: Tensor, prior_std: float) -> None:
        self.prior_variance = prior_std**2
        self.mean, self.slope = {"z": torch.zeros_like(like)}, {"z": torch.ones_like(like)}
        self.noise: dict[tuple[str, str], Tensor] = {}

    def variance(self, name: str) -> Tensor:
        """Return the variance of a register."""
        own = self.prior_variance * self.slope[name] ** 2
        return own + self.noise[name, name] if (name, name) in self.noise else own

    def run(self, operation: Denoise | Combine, data_mean: Tensor, data_variance: Tensor) -> None:
        """Apply one operation of a sampler's program, the network being the exact denoiser of N(``data_mean``,
        ``data_variance``).
        """
        if isinstance(operation, Combine):
            self._set(operation.target, operation.coefficients, 0.0, operation.noise)
            return
        alpha, sigma, source = operation.alpha, operation.sigma, operation.source
        v = alpha**2 * data_variance + sigma**2
        kappa, rest = alpha * data_variance / v, sigma / v
        # The question is kept apart, since an answer may take the place of the register that was asked about.
        self._set("", {source: 1.0})
        self._set(operation.x0, {"": kappa}, data_mean - kappa * alpha * data_mean)
        self._set(operation.epsilon, {"": rest}, -rest * alpha * data_mean)

    def _set(
        self,
        target: str,
        coefficients: Mapping[str, float | Tensor],
        constant: float | Tensor = 0.0,
        noise: float = 0.0,
    ) -> None:
        """Set ``target`` to Σ c_r r + constant + noise · ξ with a fresh ξ."""
        terms = list(coefficients.items())
        if noise or self.noise:
            self._set_noise(target, terms, noise)
        mean = _sum([c * self.mean[name] for name, c in terms]) + constant
        slope = _sum([c * self.slope[name] for name, c in terms])
        self.mean[target], self.slope[target] = mean, slope

    def _set_noise(self, target: str, terms: list[tuple[str, float | Tensor]], noise: float) -> None:
        nothing = torch.zeros_like(self.slope["z"])

        def between(a: str, b: str) -> Tensor:
            return self.noise.get((a, b), self.noise.get((b, a), nothing))

        own = _sum([c * d * between(name, other) for name, c in terms for other, d in terms]) + noise**2
        others = {
            other: _sum([c * between(name, other) for name, c in terms]) for other in self.mean if other != target
        }
        self.noise[target, target] = own
        for other, value in others.items():
            self.noise.pop((other, target), None)
            self.noise[target, other] = value


def _sum(terms: list[Tensor]) -> Tensor:
    return reduce(add, terms)


def ideal_path(
    mean: Tensor,
    variance: Tensor,
    program: Sequence[SamplerStep],
    grid: SamplingGrid,
    prior_std: float = 1.0,
    eigenvalues: Tensor | None = None,
    weights: Tensor | None = None,
) -> IdealPath:
    """Return the path of a perfect denoiser from z_T ~ N(0, ``prior_std``² I), along ``program``, eq. (1).

    Args:
        mean, variance: of real latents along each direction, (D,).
        program: the sampler's steps on ``grid``, which clip nothing.
        grid: the noise levels of the steps.
        eigenvalues, weights: how each direction's variance is made up of the covariance's eigenvalues, (A,) and (D, A),
            as in ``LatentBasis``; default: each direction is an eigenvector.

    Raises:
        ValueError: a step clips x̂_0: it is not affine, and has no ideal.
    """
    if not all(step.is_affine for step in program):
        raise ValueError("a sampler that clips the prediction of x_0 is not affine, and has no ideal path")
    mu, ell = mean.double(), variance.double().clamp(min=0)
    weight = torch.ones(len(ell), 1, dtype=torch.float64) if weights is None else weights.double()
    atoms = torch.ones(1, dtype=torch.float64) if eigenvalues is None else eigenvalues.double()
    tau = atoms * (ell / (weight @ atoms))[:, None]  # (D, A), with mean ℓ
    registers = Registers(tau, prior_std)

    def moments() -> tuple[Tensor, Tensor]:
        return (weight * registers.mean["z"]).sum(1), (weight * registers.variance("z")).sum(1)

    def epsilon_squares(question: Denoise) -> tuple[Tensor, Tensor]:
        alpha, sigma, source = question.alpha, question.sigma, question.source
        v = alpha**2 * tau + sigma**2
        spread = (registers.mean[source] - alpha * mu[:, None]) ** 2 + registers.variance(source)
        return (weight * (sigma / v) ** 2 * spread).sum(1), (weight * sigma**2 / v).sum(1)

    before = moments()
    rows = []
    levels = zip(
        grid.alpha_t.tolist(), grid.sigma_t.tolist(), grid.alpha_s.tolist(), grid.sigma_s.tolist(), strict=True
    )
    for step, (a_t, b_t, a_s, b_s) in zip(program, levels, strict=True):
        squares: tuple[Tensor, ...] = ()
        for operation in step.operations:
            if isinstance(operation, Denoise):
                squares = epsilon_squares(operation)
            registers.run(operation, mu[:, None], tau)
        after = moments()
        forward = (a_t * mu, a_t**2 * ell + b_t**2, a_s * mu, a_s**2 * ell + b_s**2)
        rows.append((*before, *after, *forward, *squares))
        before = after
    return IdealPath(*(torch.stack(column) for column in zip(*rows, strict=True)))


def ideal_path_of(basis: LatentBasis, program: Sequence[SamplerStep], grid: SamplingGrid) -> IdealPath:
    """Return ``ideal_path`` of the latents of ``basis``, from the noise that ``grid`` starts in."""
    moments, spectrum = (basis.mean, basis.variance), (basis.eigenvalues, basis.weights)
    return ideal_path(*moments, program, grid, grid.prior_std, *spectrum)


def ideal_curves(
    basis: LatentBasis, program: Sequence[SamplerStep], grid: SamplingGrid, curves_of: Callable[[IdealPath], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return positive numbers read off the ideal path, corrected for the finite number of latents by the jackknife, and
    the half-widths of their 95 % intervals. NaN where a number is no larger than its half-width: so small that these
    latents cannot tell it from 0.

    Args:
        basis: real latents' moments.
        program, grid: as ``ideal_path``'s.
        curves_of: the numbers of one path, of any shape.
    """

    def numbers(mean: Tensor, variance: Tensor) -> Tensor:
        return curves_of(ideal_path_of(replace(basis, mean=mean, variance=variance), program, grid))

    value, error = basis.jackknife(numbers)
    known = (value > NORMAL * error) | (error == 0)
    return torch.where(known, value, torch.nan), torch.where(known, NORMAL * error, torch.nan)
