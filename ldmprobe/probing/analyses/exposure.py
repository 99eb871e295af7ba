r"""Exposure: does the network meet, while it samples, the noise that it met in training?

.. math:: \rho_k = \sqrt{\overline{\|\hat\epsilon(\hat z_k)\|^2} \,/\, \overline{\|\hat\epsilon(z_k)\|^2}}

compares the noise that is predicted in the chain, ẑ_k, with that predicted on real latents noised to the same level,
z_k (Ning et al., 2024, arXiv:2308.15321, who call what drives the two apart exposure bias). For Gaussian data, an exact
denoiser and any sampler both are known, and so is their ratio when the sampler is given c ε̂ in place of ε̂,
:math:`\rho_k(c)` (`ScaledEpsilon`; of a sampler that scales already, the one within is taken). The least squares in
:math:`\ln\rho_k - \ln\rho_k(c)` say how many times too large ε̂ is taken by the chain as a whole, and 1/c is the scale
to try.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar
from torch import Tensor

from ldmprobe.analysis.ideal import IdealPath, ideal_path_of
from ldmprobe.analysis.intervals import student
from ldmprobe.diffusion.samplers import ScaledEpsilon
from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.metric import Metric
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory

_FACTORS = np.linspace(0.8, 1.25, 7)  # c, between which a spline is laid; beyond them no scale mends a network


class Exposure(Analysis):
    """The size of ε̂ in the chain ÷ that on held-out latents noised to the same level, with 95 % intervals over both,
    and the scale of ε̂ that would bring it to its ideal.

    It looks at the passes of OneStepError where both look at as many latents; alone it takes one more pass a step over
    ``num_latents`` of them. Needs held-out latents. Steps whose last pass is not at the level that they start from, as
    Heun's, are left open; guided samples have no exposure, since guidance changes ε̂ itself.

    Args:
        num_latents: at most as many as the probe was given.
    """

    metrics = (
        Metric(
            "exposure", "Predicted noise in the chain ÷ on real latents",
            "Root mean square of ε̂ along the samples' path over that on held-out latents noised to the same level. On "
            "the dashed ideal the network meets what it met in training. Above it the latents of the chain have too "
            "much noise or spread left for their level, below it too little.",
            "ratio of norms", ideal="exposure_ideal",
        ),
        Metric(
            "exposure_ideal", "ideal: the steps' length alone",
            "The ratio that a perfect denoiser of Gaussian data shows.", shown="record",
        ),
        Metric(
            "epsilon_scale", "Scale of the predicted noise that exposure suggests",
            "The constant c that, multiplied to every ε̂ of the chain, would bring its exposure to the ideal, for "
            "Gaussian data: 1 where nothing is to be mended. Try it: the sampler ScaledEpsilon(scale=c), or c times "
            "the scale that samples have already.",
            "factor", ideal=1.0, spread="epsilon_scale_half_width",
        ),
        Metric("epsilon_scale_half_width", "95 % half-width of that scale", "", "factor", shown="record"),
    )  # fmt: skip

    def __init__(self, num_latents: int = 128) -> None:
        check_numbers("Exposure", 8, num_latents=num_latents)
        self.num_latents = num_latents

    def begin(self, trajectory: Trajectory) -> None:
        if trajectory.held_out is None:
            raise ConfigurationError("Exposure needs held-out latents to compare the chain with; give the probe data.")
        self.trajectory, self.true = trajectory, trajectory.true_latents(self.num_latents)
        self.in_chain: list[Tensor] = []
        self.on_real: list[Tensor] = []

    def update(self, step: SamplingStep) -> None:
        if not self.trajectory.sampling.shifted_by:
            self.in_chain.append(_mean_square(step.epsilon))
            self.on_real.append(_mean_square(self.true.at(step.index).epsilon))

    def finish(self) -> Findings:
        trajectory, ranks = self.trajectory, self.trajectory.ranks
        if not self.in_chain:
            return Findings()
        chain = ranks.gather_rows(torch.stack(self.in_chain, 1), trajectory.sample_ids, trajectory.num_samples)
        real = self.true.draws.gathered(torch.stack(self.on_real, 1))
        measured = _LogRatio.of(chain.numpy(), real.numpy(), self._comparable())
        curve = trajectory.curve(np.exp(measured.value), *np.exp(measured.ends))
        if trajectory.reference is None:
            return Findings(curves={"exposure": curve})
        ideal, width = (each.numpy() for each in trajectory.ideal("exposure", _ratio))
        curves = {"exposure": curve, "exposure_ideal": trajectory.curve_around(ideal, width)}
        if not trajectory.has_ideal:
            return Findings(curves=curves)
        (responses,) = trajectory.once("exposure by factor", self._responses)
        found = _scale(measured, ideal, width, responses.numpy())
        return Findings({} if found is None else dict(zip(_SCALARS, found, strict=True)), curves)

    def _comparable(self) -> np.ndarray:
        """Return which steps (S,) end with a pass at the level that they start from."""
        grid, sampler = self.trajectory.grid, self.trajectory.sampling.sampler
        asked = [(last.alpha, last.sigma) for last in (step.questions[-1] for step in sampler.program(grid))]
        started = torch.stack([grid.alpha_t, grid.sigma_t], 1)
        return torch.isclose(torch.tensor(asked, dtype=started.dtype), started).all(1).numpy()

    def _responses(self) -> tuple[Tensor]:
        """Return ln ρ(c) − ln ρ(1) of a perfect denoiser of Gaussian data for each of the factors c, (K, S)."""
        grid, reference = self.trajectory.grid, self.trajectory.reference
        assert reference is not None
        sampler, basis = self.trajectory.sampling.sampler.of_ideal, reference.basis

        def log_ratio(factor: float) -> Tensor:
            return _ratio(ideal_path_of(basis, ScaledEpsilon(factor, sampler).program(grid), grid)).log()

        return (torch.stack([log_ratio(float(factor)) for factor in _FACTORS]) - log_ratio(1.0),)


_SCALARS = ("epsilon_scale", "epsilon_scale_half_width")


class _LogRatio(NamedTuple):
    """ln ρ, (S,), NaN where there is none, and by how much each sample and each real latent moves it, (N, S), (M, S):
    the terms of a mean.
    """

    value: np.ndarray
    of_chain: np.ndarray
    of_real: np.ndarray

    @classmethod
    def of(cls, chain: np.ndarray, real: np.ndarray, comparable: np.ndarray) -> _LogRatio:
        """Of the mean squares of ε̂ by sample, (N, S), and by real latent, (M, S)."""
        value = np.where(comparable, np.log(chain.mean(0) / real.mean(0)) / 2, np.nan)
        return cls(value, chain / chain.mean(0) / 2, real / real.mean(0) / 2)

    def half_width(self, weights: np.ndarray) -> np.ndarray:
        """Return the half-width of the 95 % interval of weighted sums of ln ρ over steps, (...), weights (S, ...)."""
        both = (self.of_chain, self.of_real)
        parts = (student(len(each)) ** 2 * (each @ weights).var(0, ddof=1) / len(each) for each in both)
        return np.asarray(np.sqrt(sum(parts)))

    @property
    def ends(self) -> np.ndarray:
        """The ends of the interval at each step, (2, S)."""
        width = self.half_width(np.eye(len(self.value)))
        return np.stack([self.value - width, self.value + width])


def _scale(
    measured: _LogRatio, ideal: np.ndarray, ideal_width: np.ndarray, responses: np.ndarray
) -> tuple[float, float] | None:
    """Return 1/c and the half-width of its 95 % interval; None where no c within reach brings the ratio to its ideal.

    Args:
        ideal, ideal_width: ρ(1) and its half-width, (S,).
        responses: of ln ρ to the factors, (K, S).
    """
    off = measured.value - np.log(ideal)
    known = np.isfinite(off)
    if not known.any():
        return None
    response = CubicSpline(_FACTORS, responses[:, known])
    least, most = _FACTORS[[0, -1]]
    found = minimize_scalar(
        lambda c: float(((off[known] - response(c)) ** 2).sum()), bounds=(least, most), method="bounded"
    )
    factor = float(found.x)
    slope = np.zeros(len(off))
    slope[known] = response(factor, 1)
    if min(factor - least, most - factor) < 1e-3 or not slope.any():
        return None
    weights = slope / (slope**2).sum()
    of_ideal = float(np.abs(weights[known]) @ (ideal_width / ideal)[known])  # all steps have the same real latents
    width = float(np.hypot(measured.half_width(weights), of_ideal))
    return 1 / factor, width / factor**2


def _ratio(path: IdealPath) -> Tensor:
    return (path.epsilon_square.sum(1) / path.forward_epsilon_square.sum(1)).sqrt()


def _mean_square(epsilon: Tensor) -> Tensor:
    return epsilon.double().pow(2).flatten(1).mean(1)
