"""DDIM, from deterministic to as stochastic as DDPM, and DDPM itself."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from ldmprobe.diffusion.samplers.base import Combine, Sampler, SamplerStep, denoise_at, moves
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.errors import ConfigurationError, check_numbers


class DDIM(Sampler):
    r"""DDIM (Song et al., 2021, arXiv:2010.02502, eq. 12 and 16), for any process:

    .. math::
        z_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - s^2}\,\hat\epsilon + s\,\xi, \qquad
        s^2 = \eta^2 \sigma_s^2 \Bigl(1 - \frac{\alpha_t^2\sigma_s^2}{\alpha_s^2\sigma_t^2}\Bigr)

    For rectified flow, η = 0 is Euler's step along the straight line of the velocity.

    Args:
        eta: η, from 0, deterministic, to 1, DDPM's posterior variance.

    Raises:
        ConfigurationError: η is not from 0 to 1.
    """

    name = "ddim"

    def __init__(self, eta: float = 0.0) -> None:
        check_numbers("DDIM", 0, 1, eta=eta)
        self.eta = eta

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        steps = []
        for k, move in enumerate(moves(grid)):
            fresh = self.eta**2 * max(0.0, 1 - move.decay**2)  # the share of the noise's variance that is drawn anew
            mix = {"x0": move.alpha_s, "epsilon": move.sigma_s * math.sqrt(1 - fresh)}
            steps.append(SamplerStep((denoise_at(grid, k), Combine("z", mix, move.sigma_s * math.sqrt(fresh)))))
        return steps

    def levels_on(self, grid: SamplingGrid) -> SamplingGrid:
        """Return ``grid`` itself, so that paths agree with diffusers' DDIM wherever its steps arrive."""
        return grid


class DDPM(Sampler):
    r"""Ancestral sampling by the posterior of the forward process (Ho et al., 2020, arXiv:2006.11239, eq. 6, 7), for
    any process. With :math:`q = \alpha_t\sigma_s^2 / (\alpha_s\sigma_t^2)`,

    .. math:: z_s = q\,z_t + (\alpha_s - q\,\alpha_t)\,\hat x_0 + s\,\xi,

    and no noise in the last step. Small variance is :math:`s^2 = \sigma_s^2 (1 - q\,\alpha_t/\alpha_s)`, the
    posterior's, DDIM's with η = 1; large is that of the forward step, :math:`\sigma_t^2 - \alpha_t^2 \sigma_s^2 /
    \alpha_s^2`, β_t between neighboring timesteps (their section 3.2).

    Args:
        variance: "small" or "large", diffusers' ``fixed_small`` and ``fixed_large``.

    Raises:
        ConfigurationError: another variance.
    """

    name = "ddpm"
    variants: ClassVar = {"ddpm": {}, "ddpm-large": {"variance": "large"}}

    def __init__(self, variance: Literal["small", "large"] = "small") -> None:
        if variance not in ("small", "large"):
            raise ConfigurationError(f"DDPM got variance {variance!r}; expected 'small' or 'large'.")
        self.variance = variance

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        steps = []
        for k, move in enumerate(moves(grid)):
            kept = move.decay * move.sigma_s / move.sigma_t  # q
            scale = move.sigma_s if self.variance == "small" else move.sigma_t
            noise = 0.0 if k == grid.num_steps - 1 else scale * math.sqrt(1 - move.decay**2)
            mix = {"z": kept, "x0": move.alpha_s - kept * move.alpha_t}
            steps.append(SamplerStep((denoise_at(grid, k), Combine("z", mix, noise))))
        return steps
