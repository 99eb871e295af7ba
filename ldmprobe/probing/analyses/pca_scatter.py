"""PCAScatter: the latents during sampling, in two dimensions that never change."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ldmprobe.analysis.pca import PCABasis
from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.errors import check_numbers
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Scatter
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory


class PCAScatter(Analysis):
    """Project the latents at a few noise levels on two principal components that are fitted once, on real latents.

    The scatter ``pca`` holds the samples, ``pca_real`` real latents noised to the same level, where samples should be.
    Coordinates are about α_t · mean. Without a reference the components are those of this probe's own final samples,
    and there is no ``pca_real``; where the samples are not finite, there is nothing.

    Args:
        num_levels: how many, evenly spaced in sampling steps, from pure noise to the final latents.
    """

    metrics = (
        Metric(
            "pca", "Latents during sampling",
            "Projected on two principal components that are fitted once and kept for the whole run. Gray: real "
            "latents noised to the same level, which is where the samples should be.",
            "PC", shown="headline",
        ),
        Metric("pca_explained_1", "Variance along PC 1", "Share of the real latents' variance.", ""),
        Metric("pca_explained_2", "Variance along PC 2", "Share of the real latents' variance.", ""),
    )  # fmt: skip

    def __init__(self, num_levels: int = 6) -> None:
        check_numbers("PCAScatter", 2, num_levels=num_levels)
        self.num_levels = num_levels

    def begin(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        last = trajectory.grid.num_steps
        self.levels = sorted({round(k) for k in np.linspace(0, last, min(self.num_levels, last + 1))})
        self.kept: dict[int, Tensor] = {}  # level → (n, 2), or latents where the basis is yet to come

    def update(self, step: SamplingStep) -> None:
        if step.index in self.levels:
            self._keep(step.index, step.z_t)
        if step.index == self.trajectory.grid.num_steps - 1:
            self._keep(step.index + 1, step.z_s)

    def _keep(self, level: int, z: Tensor) -> None:
        reference = self.trajectory.reference
        flat = z.flatten(1).float()
        self.kept[level] = flat if reference is None else reference.pca.project(flat, self._level(level)[1])

    def _level(self, level: int) -> tuple[int, float, float]:
        """(timestep, α, σ) of the latents after ``level`` steps."""
        grid = self.trajectory.grid
        if level < grid.num_steps:
            return int(self.trajectory.timesteps[level]), float(grid.alpha_t[level]), float(grid.sigma_t[level])
        return 0, float(grid.alpha_s[-1]), float(grid.sigma_s[-1])

    def finish(self) -> Findings:
        t = self.trajectory
        reference = t.reference
        if reference is None:
            final = t.ranks.gather_rows(self.kept[t.grid.num_steps], t.sample_ids, t.num_samples)
            if not bool(final.isfinite().all()):
                return Findings()
            pca = PCABasis.fit(final)
            kept = {level: pca.project(z, self._level(level)[1]) for level, z in self.kept.items()}
        else:
            pca, kept = reference.pca, self.kept
        first, second = (float(share) for share in pca.explained[:2])
        basis = "real latents" if reference else "own final samples"
        findings = Findings(
            scalars={"pca_explained_1": first, "pca_explained_2": second},
            scatters={"pca": []},
            provenance={
                "pca_basis": basis,
                "notes": {"pca": f"PC 1 and PC 2 hold {first:.0%} and {second:.0%} of the variance of {basis}."},
            },
        )
        for level, local in kept.items():
            timestep, alpha, sigma = self._level(level)
            log_snr = 2 * float(np.log(alpha) - np.log(sigma)) if alpha > 0 and sigma > 0 else float("nan")
            xy = t.ranks.gather_rows(local, t.sample_ids, t.num_samples).numpy()
            findings.scatters["pca"].append(Scatter(timestep, log_snr, xy))
            if reference is not None:
                # Two orthonormal projections of white noise are white noise.
                noise = sample_noise(range(len(reference.cloud)), (2,), seed=0, stream=level)
                cloud = (alpha * reference.cloud + sigma * noise).double().numpy()
                findings.scatters.setdefault("pca_real", []).append(Scatter(timestep, log_snr, cloud))
        return findings
