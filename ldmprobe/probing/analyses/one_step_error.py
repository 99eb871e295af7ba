"""OneStepError: what each step gets wrong by itself, on the sampler's own levels, and what the chain has inherited by then."""

from __future__ import annotations

import numpy as np

from ldmprobe.analysis.reference import gaussian_mmse
from ldmprobe.diffusion.trajectory import DDIMStep
from ldmprobe.errors import ConfigurationError
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory
from ldmprobe.probing.probe import sample_noise


class OneStepError(Analysis):
    """Error of one DDIM step from *true* noised latents, paired: ‖ẑ_s − (α_s z_0 + σ_s ε)‖² per dimension, same (z_0, ε), minus what the
    best linear denoiser would leave: curve ``one_step_excess`` (below 0: better than linear), with 95 % interval over latents.

    Unlike the marginal gap it inherits nothing: a level that is high here is at fault itself. Costs one more pass per step over
    ``num_latents`` real latents. Needs them.

    Args:
        num_latents: real latents, at most as many as the reference kept (512).
    """

    def __init__(self, num_latents: int = 128) -> None:
        if num_latents < 8:
            raise ConfigurationError(f"OneStepError got num_latents {num_latents}; expected at least 8.")
        self.num_latents = num_latents

    def begin(self, trajectory: Trajectory) -> None:
        if trajectory.held_out is None:
            raise ConfigurationError("OneStepError needs held-out latents; give the probe data.")
        self.trajectory = trajectory
        held_out, device = trajectory.held_out, trajectory.model.device
        self.number = min(self.num_latents, len(held_out.latents))
        self.mine = trajectory.ranks.share(self.number)
        self.z0 = held_out.latents[self.mine].to(device)
        self.condition = {name: value[self.mine].to(device) for name, value in held_out.condition.items()}
        self.noise = sample_noise(self.mine.tolist(), tuple(trajectory.model.latent_shape), seed=0, stream=3).to(device)
        self.rows: list[tuple[float, float]] = []

    def update(self, step: DDIMStep) -> None:
        grid, k, model = self.trajectory.grid, step.index, self.trajectory.model
        alpha_t, sigma_t, alpha_s, sigma_s = (
            float(level[k]) for level in (grid.alpha_t, grid.sigma_t, grid.alpha_s, grid.sigma_s)
        )
        z_t = alpha_t * self.z0 + sigma_t * self.noise
        x0, epsilon = model.denoised(z_t, step.timestep, alpha_t, sigma_t, self.condition)
        reached = alpha_s * x0 + sigma_s * epsilon
        error = (reached - alpha_s * self.z0 - sigma_s * self.noise).double().pow(2).flatten(1).mean(1)
        every = self.trajectory.ranks.gather_rows(error, self.mine, self.number)
        self.rows.append((float(every.mean()), 1.96 * float(every.std()) / self.number**0.5))

    def finish(self) -> Findings:
        grid, reference = self.trajectory.grid, self.trajectory.reference
        error, width = np.array(self.rows).T
        assert reference is not None
        # A step turns an error Δε into (σ_s − α_s σ_t/α_t) Δε.
        factor = (grid.sigma_s - grid.alpha_s * grid.sigma_t / grid.alpha_t) ** 2
        floor = (factor * gaussian_mmse(reference.basis.variance, grid.log_snr)).numpy()
        floor = np.where(np.isfinite(floor), floor, np.nan)
        excess = error - floor
        return Findings(curves={"one_step_excess": self.trajectory.curve(excess, excess - width, excess + width)})
