"""MarginalGap: are the samples, at each noise level, where real latents are?"""

from __future__ import annotations

import numpy as np
import torch

from ldmprobe.analysis.divergence import gaussian_kl, gaussian_kl_to_known
from ldmprobe.analysis.moments import PairedMoments, jackknife_interval
from ldmprobe.analysis.reference import ideal_ddim
from ldmprobe.diffusion.trajectory import DDIMStep
from ldmprobe.errors import ConfigurationError
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory


class MarginalGap(Analysis):
    """KL(p_s ‖ q_s) of the sampled latents after each step from the forward process at the same level, whose moments α_s μ and
    α_s² Σ + σ_s² I follow from real latents; nats per dimension.

    ======================  =============================================================================
    marginal_gap            with 95 % jackknife interval over trajectories, corrected for their number
    marginal_gap_ideal      that of a perfect denoiser of Gaussian data: what the steps' length alone costs
    ======================  =============================================================================

    Errors made at one level are carried to all later ones: a gap says that samples are off here, not who is to blame. Guidance shifts
    the marginals by design. Needs real latents.
    """

    def begin(self, trajectory: Trajectory) -> None:
        if trajectory.reference is None:
            raise ConfigurationError("MarginalGap needs real latents to compare with; give the probe data.")
        self.trajectory, self.basis = trajectory, trajectory.reference.basis
        grid = trajectory.grid
        levels = (grid.alpha_t, grid.sigma_t, grid.alpha_s, grid.sigma_s)
        self.ideal = ideal_ddim(self.basis.mean, self.basis.variance, *levels)
        self.rows: list[list[float]] = []

    def update(self, step: DDIMStep) -> None:
        ranks = self.trajectory.ranks
        after = self.basis.rotate(step.z_s)
        moments = PairedMoments.from_samples(after, after, self.trajectory.sample_ids).summed(ranks.all_reduce_sum)
        mean = self.ideal.forward_mean_s[step.index].to(after.device)
        variance = self.ideal.forward_var_s[step.index].to(after.device)
        total, left_out = moments.total(), moments.leave_one_out()
        gap = gaussian_kl_to_known(total.n, total.mean_x, total.var_x, mean, variance).nanmean()
        replicates = gaussian_kl_to_known(left_out.n, left_out.mean_x, left_out.var_x, mean, variance).nanmean(-1)
        self.rows.append([float(gap), *(float(limit) for limit in jackknife_interval(gap, replicates))])

    def finish(self) -> Findings:
        gap, lower, upper = np.array(self.rows).T
        ideal = self.ideal
        floor = gaussian_kl(ideal.mean_s, ideal.var_s, ideal.forward_mean_s, ideal.forward_var_s)
        floor = torch.where(ideal.forward_var_s > 0, floor, torch.nan).nanmean(1)
        curve = self.trajectory.curve
        return Findings(curves={"marginal_gap": curve(gap, lower, upper), "marginal_gap_ideal": curve(floor.numpy())})
