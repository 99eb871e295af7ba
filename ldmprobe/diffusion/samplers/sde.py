"""Euler–Maruyama's method for the reverse SDE."""

from __future__ import annotations

import math

from ldmprobe.diffusion.samplers.base import Combine, Sampler, SamplerStep, denoise_at, moves
from ldmprobe.diffusion.schedule import SamplingGrid


class EulerMaruyama(Sampler):
    r"""Euler–Maruyama's method for the reverse SDE (Song et al., 2021, arXiv:2011.13456, eq. 6), in the time λ, the
    log-SNR, in which f = d ln α/dλ and g² = σ² for every process. With Δ = λ_s − λ_t,

    .. math:: z_s = \bigl(1 + \ln\tfrac{\alpha_s}{\alpha_t}\bigr)\,z_t - \sigma_t\,\Delta\,\hat\epsilon
              + \sigma_t \sqrt\Delta\,\xi

    λ is infinite at the data and without signal: a step to or from there is DDPM's. Right to first order in Δ, also in
    its mean; it diverges where Δ is above 2.
    """

    name = "euler-maruyama"

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        steps = []
        for k, move in enumerate(moves(grid)):
            if not move.decay:
                mix, noise = {"x0": move.alpha_s}, move.sigma_s
            else:
                change = 2 * move.h
                drift = 1 + math.log(move.alpha_s / move.alpha_t)
                mix, noise = {"z": drift, "epsilon": -move.sigma_t * change}, move.sigma_t * math.sqrt(change)
            steps.append(SamplerStep((denoise_at(grid, k), Combine("z", mix, noise))))
        return steps
