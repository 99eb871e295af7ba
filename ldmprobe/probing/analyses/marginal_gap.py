"""MarginalGap: are the samples, at each noise level, where real latents are?"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ldmprobe.analysis.divergence import gaussian_kl
from ldmprobe.analysis.ideal import IdealPath
from ldmprobe.analysis.moments import PairedMoments
from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.metric import Metric
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory, gap_to_real


class MarginalGap(Analysis):
    """KL(p_s ‖ q_s) of the sampled latents after each step from the forward process at the same level, whose moments
    α_s μ and α_s² Σ + σ_s² I follow from real latents. Its 95 % jackknife interval is over trajectories and real
    latents, and it is corrected for their numbers. Guidance shifts the marginals by design. Needs real latents.
    """

    metrics = (
        Metric(
            "marginal_gap", "Samples against real latents, level by level",
            "KL of the sampled latents from real ones noised to the same level. Errors are carried from left to "
            "right: a rise says where the samples leave the data, not which level is to blame.",
            "nats per dimension", good="lower", ideal="marginal_gap_ideal", log=True, sampling=True, pool="mean",
            shown="headline",
        ),
        Metric(
            "marginal_gap_ideal", "ideal: the steps' length alone",
            "The gap that a perfect denoiser of Gaussian data leaves.", "nats per dimension", log=True, sampling=True,
            shown="record",
        ),
    )  # fmt: skip

    def begin(self, trajectory: Trajectory) -> None:
        if trajectory.reference is None:
            raise ConfigurationError("MarginalGap needs real latents to compare with; give the probe data.")
        self.trajectory, self.basis = trajectory, trajectory.reference.basis
        self.rows: list[tuple[float, float, float]] = []

    def update(self, step: SamplingStep) -> None:
        trajectory, k = self.trajectory, step.index
        after = self.basis.rotate(step.z_s)
        moments = PairedMoments.from_samples(after, after, trajectory.sample_ids).summed(
            trajectory.ranks.all_reduce_sum
        )
        alpha, sigma = float(trajectory.grid.alpha_s[k]), float(trajectory.grid.sigma_s[k])
        self.rows.append(gap_to_real(moments, self.basis, alpha, sigma))

    def finish(self) -> Findings:
        kept = self.basis.varies

        def floor(ideal: IdealPath) -> Tensor:
            gap = gaussian_kl(ideal.mean_s, ideal.var_s, ideal.forward_mean_s, ideal.forward_var_s)
            return gap[:, kept].mean(1)

        ideal, width = self.trajectory.ideal("marginal_gap", floor)
        curve = self.trajectory.curve
        return Findings(
            curves={
                "marginal_gap": curve(*np.array(self.rows).T),
                "marginal_gap_ideal": curve(ideal.numpy(), (ideal - width).numpy(), (ideal + width).numpy()),
            }
        )
