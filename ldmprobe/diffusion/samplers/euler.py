"""Euler's method for the probability flow."""

from __future__ import annotations

from ldmprobe.diffusion.samplers.base import Combine, Sampler, SamplerStep, denoise_at
from ldmprobe.diffusion.schedule import SamplingGrid


class Euler(Sampler):
    r"""Euler's method for dz/dt = α'(t) x̂_0 + σ'(t) ε̂ (Karras et al., 2022, arXiv:2206.00364, eq. 4), on the grid's
    own levels:

    .. math:: z_s = z_t + (\alpha_s - \alpha_t)\,\hat x_0 + (\sigma_s - \sigma_t)\,\hat\epsilon

    Since z_t = α_t x̂_0 + σ_t ε̂ it is DDIM to rounding, as long as x̂_0 is not clipped; written down as its authors
    do.
    """

    name = "euler"

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        changes = zip((grid.alpha_s - grid.alpha_t).tolist(), (grid.sigma_s - grid.sigma_t).tolist(), strict=True)
        return [
            SamplerStep((denoise_at(grid, k), Combine("z", {"z": 1.0, "x0": alpha, "epsilon": sigma})))
            for k, (alpha, sigma) in enumerate(changes)
        ]
