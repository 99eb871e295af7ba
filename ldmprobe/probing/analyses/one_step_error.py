"""OneStepError: what each step gets wrong by itself, on the sampler's own levels, and what the chain has inherited by
then.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ldmprobe.analysis.intervals import NORMAL, jackknife, student
from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.metric import Metric
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory


class OneStepError(Analysis):
    """The error of one DDIM step from *true* noised latents, ‖ẑ_s − (α_s z_0 + σ_s ε)‖² per dimension, less that of the
    best linear denoiser on the same (z_0, ε), with a 95 % interval over latents.

    Costs one more pass per step over ``num_latents`` held-out latents. Needs them, and a reference.

    Args:
        num_latents: at most as many as the probe was given.
    """

    metrics = (
        Metric(
            "one_step_excess", "Each step by itself",
            "Error of one sampling step from true noised latents, less that of the best linear denoiser (dashed) on "
            "the same. It inherits nothing from the steps before: a level that is above 0 here is at fault itself.",
            "squared error per dimension, above linear", good="lower", ideal=0.0,
        ),
    )  # fmt: skip

    def __init__(self, num_latents: int = 128) -> None:
        check_numbers("OneStepError", 8, num_latents=num_latents)
        self.num_latents = num_latents

    def begin(self, trajectory: Trajectory) -> None:
        held_out, reference = trajectory.held_out, trajectory.reference
        if held_out is None or reference is None:
            raise ConfigurationError("OneStepError needs held-out latents and a reference; give the probe data.")
        self.trajectory, self.basis = trajectory, reference.basis
        self.true = trajectory.true_latents(self.num_latents)
        self.rows: list[tuple[float, float]] = []

    def update(self, step: SamplingStep) -> None:
        grid, k, draws = self.trajectory.grid, step.index, self.true.draws
        levels = [float(level[k]) for level in (grid.alpha_t, grid.sigma_t, grid.alpha_s, grid.sigma_s)]
        alpha_t, sigma_t, alpha_s, sigma_s = levels
        z_t, x0, epsilon = self.true.at(k)
        truth = self.basis.rotate(alpha_s * draws.z0 + sigma_s * draws.noise).double()
        error = (self.basis.rotate(alpha_s * x0 + sigma_s * epsilon).double() - truth).pow(2).mean(1)
        mean, variance = self.basis.mean.to(z_t.device), self.basis.variance.to(z_t.device)
        slope = (alpha_s * alpha_t * variance + sigma_s * sigma_t) / (alpha_t**2 * variance + sigma_t**2)
        linear = alpha_s * mean + slope * (self.basis.rotate(z_t).double() - alpha_t * mean)
        excess = error - (linear - truth).pow(2).mean(1)
        every = draws.gathered(excess)
        # That filter, along the basis's directions by themselves, is not the best: what it lacks is known.
        slope = slope.cpu()
        lacks, lacks_width = self._lacks((alpha_s - slope * alpha_t) ** 2, (sigma_s - slope * sigma_t) ** 2, levels)
        width = student(draws.number) * float(every.std()) / draws.number**0.5
        self.rows.append((float(every.mean()) + lacks, (width**2 + lacks_width**2) ** 0.5))

    def _lacks(self, of_signal: Tensor, of_noise: Tensor, levels: list[float]) -> tuple[float, float]:
        """Mean squared error of a filter that lets through so much of the signal's and the noise's variance, (D,),
        beyond the best linear denoiser's, per dimension, and its half-width.
        """
        alpha_t, sigma_t, alpha_s, sigma_s = levels
        alpha = max(alpha_t, 1e-6 * sigma_t)  # at no signal: its limit
        error, lower, upper = self.basis.optimum.at(torch.tensor(2 * math.log(alpha / sigma_t)))
        scale = (alpha_s * sigma_t / alpha - sigma_s) ** 2
        own, of_own = jackknife(
            (of_signal * self.basis.variance + of_noise).mean(),
            (of_signal * self.basis.variance_without + of_noise).mean(-1),
        )
        width = max(float(upper - error), float(error - lower)) * scale
        return float(own - scale * error), (width**2 + (NORMAL * float(of_own)) ** 2) ** 0.5

    def finish(self) -> Findings:
        excess, width = np.array(self.rows).T
        return Findings(curves={"one_step_excess": self.trajectory.curve_around(excess, width)})
