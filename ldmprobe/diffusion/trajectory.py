"""Deterministic DDIM sampling as a generator: a probe is a ``for`` loop over its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ldmprobe.diffusion.prediction import to_x0_and_epsilon
from ldmprobe.diffusion.schedule import SamplingGrid


@dataclass(frozen=True)
class DDIMStep:
    """One pass through the denoiser: z_t goes in, z_s comes out.

    Attributes:
        index: k = 0 … S−1, in sampling order (0 is the noisiest).
        timestep: what the denoiser was told.
        z_t, z_s: latents before and after, shape (N, C, H, W).
        x0, epsilon: the denoiser's x̂_0 and ε̂ at z_t, same shape.
    """

    index: int
    timestep: float
    z_t: Tensor
    z_s: Tensor
    x0: Tensor
    epsilon: Tensor


def ddim_steps(
    denoise: Callable[[Tensor, float], Tensor], z_T: Tensor, grid: SamplingGrid, prediction_type: str
) -> Iterator[DDIMStep]:
    """Sample from noise ``z_T`` (N, C, H, W), yielding each step (Song et al., 2021, arXiv:2010.02502, eq. 12, η = 0).

    z_s = α_s x̂_0 + σ_s ε̂. Memory does not grow with the number of steps.

    Args:
        denoise: (z_t, timestep) → prediction of type ``prediction_type``.
    """
    z_t = z_T
    for k, timestep in enumerate(grid.timesteps.tolist()):
        prediction = denoise(z_t, timestep)
        x0, epsilon = to_x0_and_epsilon(
            prediction_type, prediction, z_t, float(grid.alpha_t[k]), float(grid.sigma_t[k])
        )
        if grid.clip_range is not None:
            x0 = x0.clamp(-grid.clip_range, grid.clip_range)
        z_s = float(grid.alpha_s[k]) * x0 + float(grid.sigma_s[k]) * epsilon
        yield DDIMStep(k, timestep, z_t, z_s, x0, epsilon)
        z_t = z_s
