r"""The spectrum behind a sample: what finitely many latents say about the covariance Σ that they were drawn from.

The eigenvalues of a sample's covariance are too spread out: its large ones are too large and its small ones too small,
by a factor of (1 ± √(D/N))² for white data. A linear denoiser computed from them seems better than any can be. Two
facts mend that.

**Every ridge of the sample stands for a larger ridge of the truth.** With Ŝ = XᵀX/n of centered latents, n = N − 1, and
r > 0,

.. math:: r\,(\hat S + r)^{-1} \simeq \kappa\,(\Sigma + \kappa)^{-1}, \qquad
          \kappa = r\,\frac{\sum_k h_k/(1 - h_k)}{\sum_k h_k}, \qquad h_k = x_k^T (X^T X + n r)^{-1} x_k,   \qquad (1)

in traces and along any direction that does not depend on the sample (Silverstein, 1995; Rubio & Mestre, 2011; of equal
leverages h_k this is κ = r/(1 − df/n), as in generalized cross-validation). The leave-one-out form allows for latents
of unequal contrast. So the error of the best linear denoiser, tr Σ(Σ + κ)⁻¹/D at log-SNR −ln κ, is the sample's degrees
of freedom Σh_k/D at the smaller ridge r, without bias to first order, and without a model of the spectrum.

**What no ridge reaches is bounded.** With N ≤ D, (1) ends at some κ₀ > 0: the sample says nothing of eigenvalues much
below. All spectra on [0, ∞) that agree with what is known above κ₀ (El Karoui, 2008) give the least and the largest
error below, by linear programming.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.optimize import linprog, nnls
from torch import Tensor

from ldmprobe.analysis.intervals import NORMAL

_LARGEST_SHARE = 0.9  # of the degrees of freedom that (1) is trusted to: at 1 it has a pole
_LEAST_LEFT_OUT = 0.02  # 1 − h_k
_SPACING = 0.25  # of κ, in logarithms
_LOG_SNR = np.arange(-20, 20.01, _SPACING)
_MOST_FITS = 1024  # of spectral measures; a fit takes some milliseconds
_UNREACHED = np.array([0, 0.5, 1, 1.5, 2.25, 3, 4, 5.5, 8, 12, 20, 45.0])  # −ln κ beyond −ln κ₀


@dataclass(frozen=True)
class Ridges:
    """A sample's covariance at many ridges, each with the ridge of the true covariance that it stands for, eq. (1).

    Attributes:
        eigenvalues: the sample's, (R,), those that are 0 by its rank left out; float64.
        vectors: (D, R), orthonormal columns, or (N, R) with columns that the centered latents take there, where N ≤ D.
        ridge, kappa: r and κ, (K,), falling.
        trace: tr Σ(Σ + κ)⁻¹/D, (K,).
        half_width: of the 95 % interval of ``trace``, (K,): by leaving out each latent, and by what the allowance for
            unequal latents is.
    """

    eigenvalues: Tensor
    vectors: Tensor
    ridge: Tensor
    kappa: Tensor
    trace: Tensor
    half_width: Tensor

    @classmethod
    def of(cls, centered: Tensor) -> Ridges:
        """From centered latents (N, D); the cost is an eigendecomposition of the smaller of N × N and D × D."""
        rows, d = centered.shape
        n = rows - 1
        if d < rows:
            eigenvalues, vectors = torch.linalg.eigh(_gram(centered.T) / n)
            shares = _products(centered, vectors) ** 2 / n  # of latent k in eigenvalue j, (N, R)
        else:
            eigenvalues, vectors = torch.linalg.eigh(_gram(centered) / n)
            eigenvalues, vectors = eigenvalues[1:], vectors[:, 1:]
            shares = vectors**2 * eigenvalues
        eigenvalues = eigenvalues.clamp(min=1e-14 * float(eigenvalues[-1]))
        largest = float(eigenvalues[-1].log())
        ridge = torch.linspace(largest + 12, largest - 26, 450, dtype=torch.float64).exp()
        inverse = 1 / (eigenvalues[:, None] + ridge)
        leverage = shares @ inverse  # (N, K)
        freedom = leverage.sum(0)
        left_out = 1 - leverage * rows / n
        known = (freedom < _LARGEST_SHARE * n) & (left_out.amin(0) > _LEAST_LEFT_OUT)
        known &= known.cumprod(0).bool()
        kappa = ridge * (leverage / left_out.clamp(min=_LEAST_LEFT_OUT)).sum(0) / freedom
        error = _standard_error(ridge, kappa, freedom, leverage, shares @ inverse**2, n, d)
        slope = torch.gradient(freedom, spacing=(kappa.log(),))[0] / d
        allowed = slope * (kappa * (1 - freedom / n).clamp(min=1 - _LARGEST_SHARE) / ridge).log()
        half_width = (NORMAL**2 * error**2 + allowed**2).sqrt()
        keep = _thinned(kappa[known].log())
        ridge, kappa, freedom, half_width = (value[known][keep] for value in (ridge, kappa, freedom, half_width))
        return cls(eigenvalues, vectors, ridge, kappa, freedom / d, half_width)

    def overlaps(self, centered: Tensor) -> Tensor:
        """Squared products of the axes with the sample's eigenvectors, (D, R), the sample being the one it was made
        of.
        """
        if len(self.vectors) == centered.shape[1] < len(centered):
            return self.vectors**2
        products = centered.T @ self.vectors.to(centered.dtype)
        return products**2 / ((len(centered) - 1) * self.eigenvalues).to(centered.dtype)

    def along(self, overlaps: Tensor) -> Tensor:
        """uᵀ Σ(Σ + κ)⁻¹ u, (M, K), of unit directions u that do not depend on the sample.

        Args:
            overlaps: squared products of directions and the sample's eigenvectors, (M, R).
        """
        return overlaps @ (self.eigenvalues[:, None] / (self.eigenvalues[:, None] + self.ridge)).to(overlaps.dtype)


def _gram(x: Tensor) -> Tensor:
    """Return x xᵀ in float64, in pieces, since ``x`` may be large and float32."""
    return sum((part.double() @ part.double().T for part in x.split(4096, dim=1)), torch.zeros(()))


def _products(x: Tensor, vectors: Tensor) -> Tensor:
    return torch.cat([part.double() @ vectors for part in x.split(4096)])


def _standard_error(
    ridge: Tensor, kappa: Tensor, freedom: Tensor, leverage: Tensor, squares: Tensor, n: int, d: int
) -> Tensor:
    """Return the standard error of the degrees of freedom at a given κ, as a share of d, by the jackknife over latents:
    without latent k they are less by r x_kᵀ(Ŝ + r)⁻²x_k/(1 − h_k), at a κ that is larger since there is less to divide
    among.
    """
    less = ridge * squares / (1 - leverage).clamp(min=_LEAST_LEFT_OUT)
    remaining = (n - freedom).clamp(min=1 - _LARGEST_SHARE)
    moved = torch.log(remaining / (remaining - 1 + less).clamp(min=1e-3 * remaining))
    slope = torch.gradient(freedom, spacing=(kappa.log(),))[0]
    change = -less - slope * moved
    change = change - change.mean(0)
    return (n / (n + 1) * (change**2).sum(0)).sqrt() / d


def _thinned(log_kappa: Tensor) -> list[int]:
    """Positions of values that are at least the spacing apart, and the last."""
    keep = [0]
    for k, value in enumerate(log_kappa.tolist()):
        if float(log_kappa[keep[-1]]) - value >= _SPACING:
            keep.append(k)
    if keep[-1] != len(log_kappa) - 1:
        keep.append(len(log_kappa) - 1)
    return keep


@dataclass(frozen=True)
class LinearOptimum:
    """Error of the best linear denoiser over log-SNR: mean squared ε-error per dimension, tr Σ(Σ + κ)⁻¹/D at κ =
    e^−log-SNR.

    Attributes:
        log_snr, error, lower, upper: (K,), float64, rising; the limits are those of a 95 % interval, which holds the
            reference's finite number of latents, and where these cannot tell, all that they leave possible.
        known_to: up to which log-SNR eq. (1) reaches.
    """

    log_snr: Tensor
    error: Tensor
    lower: Tensor
    upper: Tensor
    known_to: float

    @classmethod
    def of_spectrum(cls, variance: Tensor) -> LinearOptimum:
        """Return the degrees of freedom of a known spectrum: mean_i aλ_i/(aλ_i + b)."""
        log_snr = torch.from_numpy(_LOG_SNR)
        error = gaussian_mmse(variance, log_snr)
        return cls(log_snr, error, error, error, float("inf"))

    @classmethod
    def of_sample(cls, ridges: Ridges, rows: int, diagonal: Tensor) -> LinearOptimum:
        """Return the degrees of freedom of the covariance behind a sample of ``rows`` latents.

        Args:
            diagonal: variances along any orthonormal directions that do not depend on the sample, (D,). No linear
                denoiser is worse than the one that filters along these by themselves.
        """
        kappa, trace, width = (value.numpy()[::-1] for value in (ridges.kappa, ridges.trace, ridges.half_width))
        nodes = -np.log(kappa[::-1])
        known = CubicSpline(nodes, np.log(trace[::-1]))
        inside = _LOG_SNR.clip(nodes[0], nodes[-1])
        beyond = np.exp(np.minimum(_LOG_SNR - nodes[0], 0))  # where the error falls as the signal does
        value, half_width = np.exp(known(inside)) * beyond, np.interp(inside, nodes, width[::-1]) * beyond
        lower, upper = value - half_width, value + half_width
        unreached = nodes[-1] < _LOG_SNR
        if unreached.any():
            wanted = nodes[-1] + _UNREACHED
            most = gaussian_mmse(diagonal, torch.from_numpy(wanted)).numpy()
            # A mean of concave functions of variances is too small by up to 1/(2 N) of itself.
            most = most * (1 + 1 / rows) + width[0]
            found = _bounded(kappa, trace, width, np.exp(-wanted), diagonal.numpy(), most)
            for curve, bound in zip((value, lower, upper), found, strict=True):
                curve[unreached] = PchipInterpolator(wanted, bound)(_LOG_SNR[unreached])
        lower, upper = np.minimum(lower, value).clip(min=0), np.maximum(upper, value).clip(max=1)
        grid, *curves = (torch.from_numpy(array) for array in (_LOG_SNR, value, lower, upper))
        return cls(grid, curves[0], curves[1], curves[2], float(nodes[-1]))

    def at(self, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(error, lower, upper) at levels of any shape; beyond the grid as far as the signal or its absence carries."""
        grid, wanted = self.log_snr.numpy(), np.asarray(log_snr.double())
        below = np.exp(np.minimum(wanted - grid[0], 0))
        found = []
        for values in (self.error, self.lower, self.upper):
            spline = CubicSpline(grid, np.log(values.numpy().clip(min=1e-300)))
            found.append(torch.as_tensor(np.exp(spline(wanted.clip(grid[0], grid[-1]))) * below))
        return found[0], torch.minimum(found[1], found[0]), torch.maximum(found[2], found[0])


def _bounded(
    kappa: np.ndarray, trace: np.ndarray, width: np.ndarray, wanted: np.ndarray, diagonal: np.ndarray, most: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(value, least, largest) of Σ_j w_j τ_j/(τ_j + κ) at each wanted κ, over spectra w that fit what is known; the
    value is that of the one among them that is next to ``diagonal``'s.
    """
    thin = np.unique(np.append(np.arange(0, len(kappa), 2), len(kappa) - 1))
    kappa, trace, width = kappa[thin], trace[thin], width[thin]
    top = float(diagonal.max()) * 4
    atoms = np.append(np.exp(np.arange(np.log(top), np.log(kappa[0]) - 9, -0.3)), 0.0)
    position = np.abs(np.log(np.maximum(diagonal, atoms[-2])[:, None] / atoms[None, :-1])).argmin(1)
    near = np.append(np.bincount(position, minlength=len(atoms) - 1), 0) / len(diagonal)
    kernel = atoms / (atoms + kappa[:, None])
    tolerance = width + 2e-3 * trace
    pull = 0.03
    rows = np.vstack([kernel / tolerance[:, None], np.full(len(atoms), 1e3), pull * np.eye(len(atoms)) / 0.01])
    weights, _ = nnls(rows, np.concatenate([trace / tolerance, [1e3], pull * near / 0.01]), maxiter=10_000)
    weights /= weights.sum()
    tolerance = np.maximum(tolerance, 1.01 * np.abs(kernel @ weights - trace))
    scaled, share = kernel / trace[:, None], tolerance / trace
    limits = {"A_ub": np.vstack([scaled, -scaled]), "b_ub": np.concatenate([1 + share, share - 1])}
    total = {"A_eq": np.ones((1, len(atoms))), "b_eq": [1.0]}
    value, least, largest = np.empty((3, len(wanted)))
    for k, level in enumerate(wanted):
        cost = atoms / (atoms + level)
        ends = [linprog(sign * cost, **limits, **total, options={"presolve": False}) for sign in (1, -1)]
        value[k] = cost @ weights
        least[k], largest[k] = (
            sign * end.fun if end.success else value[k] for sign, end in zip((1, -1), ends, strict=True)
        )
    slack = 2e-3  # of spectra between the atoms
    return np.minimum(value, most), (1 - slack) * least, np.minimum((1 + slack) * largest, most)


def spectral_measures(ridges: Ridges, along: Tensor, variance: Tensor, num_atoms: int = 20) -> tuple[Tensor, Tensor]:
    """Return what each direction's variance is made up of: weights w ≥ 0 with uᵀ f(Σ) u ≈ Σ_m w_m f(τ_m) for smooth f.

    A direction that is not an eigenvector of Σ has a variance between eigenvalues, and what a denoiser makes of it
    along a sampling path is a mean over these, not a function of its variance. The weights are fitted to uᵀ Σ(Σ + κ)⁻¹
    u at all ridges by non-negative least squares. Of more than 1,024 directions, those of neighboring variance share
    one fit to their mean.

    Args:
        along: ``Ridges.along`` of the directions, (M, K).
        variance: along each direction, (M,), above 0.

    Returns:
        τ, (A,), and w, (M, A), float32, summing to 1.
    """
    kappa, values, own = ridges.kappa.numpy(), along.double().numpy(), variance.numpy()
    atoms = np.exp(np.linspace(np.log(3 * own.max()), np.log(own.min() / 5), num_atoms))
    coarse = np.unique(np.append(np.arange(0, len(kappa), 2), len(kappa) - 1))
    coarse = coarse[(kappa[coarse] < 100 * own.max()) & (kappa[coarse] > own.min() / 100)]
    kernel = atoms / (atoms + kappa[coarse, None])
    values = values[:, coarse].clip(min=1e-6)
    weights = np.zeros((len(own), num_atoms))
    for group in np.array_split(own.argsort(kind="stable"), min(len(own), _MOST_FITS)):
        measured, ell = values[group].mean(0), own[group].mean()
        rows = np.vstack([kernel / measured[:, None], np.full(num_atoms, 30.0), 30 * atoms / ell])
        target = np.append(np.ones(len(coarse)), [30.0, 30.0])
        try:
            weights[group] = nnls(rows, target, maxiter=500)[0]
        except RuntimeError:  # it cycles: the directions are taken for eigenvectors
            weights[group, np.abs(np.log(atoms / ell)).argmin()] = 1
    weights /= weights.sum(1, keepdims=True)
    return torch.from_numpy(atoms), torch.from_numpy(weights).float()


def gaussian_mmse(variance: Tensor, log_snr: Tensor) -> Tensor:
    """Mean squared ε-error per dimension of the best *linear* denoiser: mean_i aλ_i/(aλ_i + b), shape of ``log_snr``.

    Args:
        variance: the eigenvalues of the true covariance, (D,). Of variances along other directions it is too large, and
            of a sample's own eigenvalues too small.
        log_snr: levels, any shape.
    """
    signal = variance.double().clamp(min=0) * log_snr.double().exp()[..., None]
    return (signal / (signal + 1)).mean(-1)
