"""StepKL: the paper's KL before and after each denoiser pass, and what a perfect denoiser would show beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmprobe.analysis.divergence import gaussian_js, gaussian_kl, paired_gaussian_kl, softmax_kl
from ldmprobe.analysis.moments import PairedMoments, jackknife_interval
from ldmprobe.analysis.reference import ideal_ddim
from ldmprobe.diffusion.trajectory import DDIMStep
from ldmprobe.errors import ConfigurationError
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory


class StepKL(Analysis):
    """KL divergence of the latents before and after each pass through the denoiser (Roh et al.), in nats per dimension.

    Curves, all over the timestep going in:

    =======================  ==================================================================================
    step_kl                  Gaussian-moment KL(before ‖ after) in the reference's basis, paired correction,
                             95 % jackknife interval over trajectories
    step_kl_floor            what an uncorrected estimate would read above it, from the finite number of samples alone
    step_kl_reverse          KL(after ‖ before)
    step_kl_js               Jensen-Shannon divergence of the moment-matched Gaussians, at most ln 2 (not corrected)
    step_kl_softmax          paper-style softmax KL
    step_kl_ideal            step_kl of a *perfect* denoiser of Gaussian data with real latents' moments, closed form
    step_kl_forward          KL(q_t ‖ q_s) of the forward process between the same two noise levels
    step_kl_ratio/bandK      step_kl ÷ its ideal within an eigen-band: 1 for a perfect model, whatever the steps
    variance_ratio/bandK     variance of the sampled latents after the step ÷ that of real latents at that level
    variance_ratio_ideal/bandK   the same of a perfect denoiser: below 1 by what the steps' length costs
    =======================  ==================================================================================

    Eigen-bands split the basis's directions into equal parts by real latents' variance, band 0 the largest. The raw curve is near 0
    early and steep late for a perfect model too: read it against ``step_kl_ideal`` only. Without reference the closed forms and bands
    are left out and the basis is a 2-D cosine transform.

    Args:
        num_bands: eigen-bands.
    """

    def __init__(self, num_bands: int = 4) -> None:
        if num_bands < 1:
            raise ConfigurationError(f"StepKL got num_bands {num_bands}; expected at least 1.")
        self.num_bands = num_bands

    def begin(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.basis = trajectory.basis
        self.rows: list[dict[str, Any]] = []
        self.before: Tensor | None = None

    def update(self, step: DDIMStep) -> None:
        ranks, ids = self.trajectory.ranks, self.trajectory.sample_ids
        before = self.basis.rotate(step.z_t) if self.before is None else self.before
        after = self.basis.rotate(step.z_s)
        moments = PairedMoments.from_samples(before, after, ids).summed(ranks.all_reduce_sum)
        total, left_out = moments.total(), moments.leave_one_out()
        per_direction = paired_gaussian_kl(total)
        kl = per_direction.nanmean()
        lower, upper = jackknife_interval(kl, paired_gaussian_kl(left_out).nanmean(-1))
        raw = gaussian_kl(total.mean_x, total.var_x, total.mean_y, total.var_y)
        self.rows.append(
            {
                "step_kl": float(kl),
                "lower": float(lower),
                "upper": float(upper),
                "step_kl_floor": float((raw - per_direction).nanmean()),
                "step_kl_reverse": float(paired_gaussian_kl(total, reverse=True).nanmean()),
                "step_kl_js": float(gaussian_js(total.mean_x, total.var_x, total.mean_y, total.var_y).nanmean()),
                "step_kl_softmax": self._softmax_kl(step),
                "per_direction": per_direction.cpu(),
                "variance": total.var_y.cpu(),
            }
        )
        self.before = after

    def _softmax_kl(self, step: DDIMStep) -> float:
        ids = self.trajectory.sample_ids
        sums = torch.zeros(2, dtype=torch.float64, device=step.z_t.device)  # Σ, n
        if len(ids):
            sums[0] = softmax_kl(step.z_t.flatten(1), step.z_s.flatten(1)) * len(ids)
            sums[1] = len(ids)
        total, count = self.trajectory.ranks.all_reduce_sum(sums).tolist()
        return total / count

    def finish(self) -> Findings:
        trajectory, grid = self.trajectory, self.trajectory.grid
        names = ("step_kl", "step_kl_floor", "step_kl_reverse", "step_kl_js", "step_kl_softmax", "lower", "upper")
        column = {name: np.array([row[name] for row in self.rows]) for name in names}
        lower, upper = column.pop("lower"), column.pop("upper")
        if trajectory.reference is not None:
            levels = (grid.alpha_t, grid.sigma_t, grid.alpha_s, grid.sigma_s)
            ideal = ideal_ddim(self.basis.mean, self.basis.variance, *levels)
            column["step_kl_ideal"] = ideal.step_kl().mean(1).numpy()
            column["step_kl_forward"] = ideal.forward_step_kl().mean(1).numpy()
            measured = torch.stack([row["per_direction"] for row in self.rows])
            variance = torch.stack([row["variance"] for row in self.rows])
            for k, band in enumerate(self.basis.variance.argsort(descending=True).tensor_split(self.num_bands)):
                ratio = measured[:, band].nanmean(1) / ideal.step_kl()[:, band].mean(1)
                column[f"step_kl_ratio/band{k}"] = ratio.numpy()
                column[f"variance_ratio/band{k}"] = (variance / ideal.forward_var_s)[:, band].nanmean(1).numpy()
                perfect = ideal.var_s / ideal.forward_var_s
                column[f"variance_ratio_ideal/band{k}"] = perfect[:, band].nanmean(1).numpy()
        curves = {name: trajectory.curve(value) for name, value in column.items()}
        curves["step_kl"] = trajectory.curve(column["step_kl"], lower, upper)
        dimension = int(np.prod(self.basis.shape))
        return Findings(curves=curves, provenance={"kl_basis": self.basis.kind, "kl_dimension": dimension})
