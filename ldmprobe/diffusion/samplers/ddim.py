"""DDIM, deterministic."""

from __future__ import annotations

from ldmprobe.diffusion.samplers.base import Combine, Sampler, SamplerStep, denoise_at
from ldmprobe.diffusion.schedule import SamplingGrid


class DDIM(Sampler):
    """z_s = α_s x̂_0 + σ_s ε̂ (Song et al., 2021, arXiv:2010.02502, eq. 12, η = 0).

    For rectified flow this is Euler's step along the straight line of the velocity.
    """

    name = "ddim"

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        levels = zip(grid.alpha_s.tolist(), grid.sigma_s.tolist(), strict=True)
        return [
            SamplerStep((denoise_at(grid, k), Combine("z", {"x0": alpha_s, "epsilon": sigma_s})))
            for k, (alpha_s, sigma_s) in enumerate(levels)
        ]

    def levels_on(self, grid: SamplingGrid) -> SamplingGrid:
        """Return ``grid`` itself, so that paths agree with diffusers' DDIM wherever its steps arrive."""
        return grid
