"""MarginalGap: are the samples, at each noise level, where real latents are, and is it the sampler or the network that
takes them away?
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from ldmprobe.analysis.divergence import gaussian_kl
from ldmprobe.analysis.ideal import IdealPath
from ldmprobe.analysis.moments import PairedMoments
from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.metric import Metric
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory, gap_to_real

_gap = partial(Metric, unit="nats per dimension", good="lower", log=True)
_at_the_end = partial(Metric, unit="nats per dimension", good="lower")


class MarginalGap(Analysis):
    r"""KL(p_s ‖ q_s) of the sampled latents after each step from the forward process at the same level, whose moments
    α_s μ and α_s² Σ + σ_s² I follow from real latents. Its 95 % jackknife interval is over trajectories and real
    latents, and it is corrected for their numbers. Guidance shifts the marginals by design: with it, and where x̂_0 is
    clipped, there is no ideal to tell the sampler's part from the network's. Needs real latents.

    What a perfect denoiser of Gaussian data leaves by the same sampler, grid and steps is the sampler's own part; the
    rest at the end is the network's. Before the first step the samples are off by the terminal mismatch of q_T from the
    prior p that z_T is drawn from, for data N(μ, ℓ) in one direction, with v_T = α_T² ℓ + σ_T²

    .. math:: \text{KL}(q_T \| p) = \tfrac12 \left[ v_T/p - 1 - \ln (v_T/p) + \alpha_T^2 \mu^2 / p \right].

    Args:
        num_bands: eigen-bands, as StepKL's.
    """

    metrics = (
        _gap(
            "marginal_gap", "Samples against real latents, level by level",
            "KL of the sampled latents from real ones noised to the same level. Errors are carried from left to "
            "right: a rise says where the samples leave the data, not which level is to blame.",
            ideal="marginal_gap_ideal", beside=("marginal_gap_memorizer", "marginal_gap_mixture"), pool="mean",
            shown="headline",
        ),
        _gap(
            "marginal_gap_ideal", "ideal: the steps' length alone",
            "The gap that a perfect denoiser of Gaussian data leaves.", good="ideal", shown="record",
        ),
        _gap(
            "marginal_gap/*", "Samples against real latents, by eigen-band",
            "The latest probe. Dashed is what the sampler alone costs along these directions: the gap that a perfect "
            "denoiser of Gaussian data leaves by the same steps. What lies above it is the network's fault.",
            ideal="marginal_gap_ideal/*",
        ),
        _gap("marginal_gap_ideal/*", "the sampler alone", "", good="ideal", shown="record"),
        _at_the_end(
            "network_gap", "What the network costs",
            "By how much the samples end further from real latents than a perfect denoiser of Gaussian data would take "
            "them by the same sampler, grid and steps. Beside it what these alone cost: a finer grid or a better "
            "sampler lowers that, training does not.",
            beside=("sampler_gap",), shown="headline",
        ),
        _at_the_end(
            "sampler_gap", "What the sampler costs",
            "KL from real latents in which a perfect denoiser of Gaussian data would end.",
        ),
        _at_the_end(
            "terminal_mismatch", "Terminal mismatch",
            "KL of real latents at the noisiest level from the noise that sampling starts from.",
        ),
    )  # fmt: skip

    def __init__(self, num_bands: int = 4) -> None:
        check_numbers("MarginalGap", 1, num_bands=num_bands)
        self.num_bands = num_bands

    def begin(self, trajectory: Trajectory) -> None:
        if trajectory.reference is None:
            raise ConfigurationError("MarginalGap needs real latents to compare with; give the probe data.")
        self.trajectory, self.basis = trajectory, trajectory.reference.basis
        self.bands = self.basis.bands(self.num_bands)
        self.rows: list[np.ndarray] = []

    def update(self, step: SamplingStep) -> None:
        trajectory, k = self.trajectory, step.index
        after = self.basis.rotate(step.z_s)
        moments = PairedMoments.from_samples(after, after, trajectory.sample_ids).summed(
            trajectory.ranks.all_reduce_sum
        )
        alpha, sigma = float(trajectory.grid.alpha_s[k]), float(trajectory.grid.sigma_s[k])
        self.rows.append(gap_to_real(moments, self.basis, alpha, sigma, self.bands))

    def finish(self) -> Findings:
        parts = [self.basis.varies, *self.bands]

        def left(ideal: IdealPath) -> Tensor:
            gap = gaussian_kl(ideal.mean_s, ideal.var_s, ideal.forward_mean_s, ideal.forward_var_s)
            return torch.stack([gap[:, part].mean(1) for part in parts])

        found_ideal = self.trajectory.ideal(f"marginal_gap in {len(self.bands)} bands", left)
        ideal, width = (value.numpy() for value in found_ideal)
        measured = np.stack(self.rows, axis=-1)  # (3, 1 + bands, S)
        curves = {}
        for k in range(len(parts)):
            member = f"/band{k - 1}" if k else ""
            curves[f"marginal_gap{member}"] = self.trajectory.curve(*measured[:, k])
            curves[f"marginal_gap_ideal{member}"] = self.trajectory.curve_around(ideal[k], width[k])
        # So small that the real latents cannot tell it from 0, the sampler's part is NaN. It has no end where one step
        # from no signal leaves all samples on the mean.
        sampler = float(np.nan_to_num(ideal[0, -1], posinf=np.inf))
        costs = {"sampler_gap": sampler, "network_gap": float(measured[0, 0, -1]) - sampler}
        told_apart = self.trajectory.has_ideal and np.isfinite(sampler)
        mismatch = self._terminal_mismatch()
        told = (
            f"The noise that sampling starts from is {mismatch:.1e} nats per dimension from real latents noised as far."
        )
        return Findings(
            scalars={**(costs if told_apart else {}), "terminal_mismatch": mismatch},
            curves=curves,
            provenance={"notes": {"marginal_gap": told}},
        )

    def _terminal_mismatch(self) -> float:
        grid, kept = self.trajectory.grid, self.basis.varies
        alpha, sigma = float(grid.alpha_t[0]), float(grid.sigma_t[0])
        mean, variance = alpha * self.basis.mean[kept], alpha**2 * self.basis.variance[kept] + sigma**2
        prior = torch.tensor(grid.prior_std**2, dtype=torch.float64)
        return float(gaussian_kl(mean, variance, torch.zeros_like(mean), prior.expand_as(mean)).mean())
