"""Euler's method for the probability flow, and its ancestral form."""

from __future__ import annotations

import math

from ldmprobe.diffusion.samplers.base import Combine, Sampler, SamplerStep, denoise_at, moves
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.errors import check_numbers


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


class EulerAncestral(Sampler):
    r"""Euler's step down to less noise than the grid's, and fresh noise up to it (k-diffusion's
    ``sample_euler_ancestral``). With :math:`\tilde\sigma = \sigma/\alpha`,

    .. math::
        \sigma_{up}^2 = \eta^2\,\tilde\sigma_s^2 (1 - \tilde\sigma_s^2/\tilde\sigma_t^2), \qquad
        \sigma_{down}^2 = \tilde\sigma_s^2 - \sigma_{up}^2, \qquad
        z_s/\alpha_s = z_t/\alpha_t + (\sigma_{down} - \tilde\sigma_t)\,\hat\epsilon + \sigma_{up}\,\xi

    It is ``DDIM`` with the same η, as long as x̂_0 is not clipped.

    Args:
        eta: η, from 0, Euler's method, to 1.

    Raises:
        ConfigurationError: η is not from 0 to 1.
    """

    name = "euler-ancestral"

    def __init__(self, eta: float = 1.0) -> None:
        check_numbers("EulerAncestral", 0, 1, eta=eta)
        self.eta = eta

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        steps = []
        for k, move in enumerate(moves(grid)):
            fresh = self.eta**2 * (1 - move.decay**2)
            down = move.sigma_s * math.sqrt(1 - fresh)
            mix = {"z": 1.0, "x0": move.alpha_s - move.alpha_t, "epsilon": down - move.sigma_t}
            steps.append(SamplerStep((denoise_at(grid, k), Combine("z", mix, move.sigma_s * math.sqrt(fresh)))))
        return steps
