"""ScaledEpsilon: any sampler, with the network's noise scaled."""

from __future__ import annotations

from dataclasses import replace

from ldmprobe.diffusion.samplers.base import Combine, Denoise, Sampler, SamplerStep
from ldmprobe.diffusion.samplers.ddim import DDIM
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.errors import ConfigurationError, check_positive


class ScaledEpsilon(Sampler):
    r"""A sampler that takes c · ε̂ for ε̂, and the clean latents that follow from it,

    .. math:: \hat x_0 = (z_t - c\,\sigma_t\,\hat\epsilon) / \alpha_t,

    wherever a level has signal, α_t > 0: the epsilon scaling of ADM-ES (Ning et al., 2024, arXiv:2308.15321), whose
    constant λ is 1/c. A sampling probe's ``epsilon_scale`` is a c to try.

    Args:
        scale: c, above 0.
        predictor: the sampler; default: DDIM.

    Raises:
        ConfigurationError: the scale is not above 0; or, of a program, x̂_0 is clipped.
    """

    name = "scaled-epsilon"

    def __init__(self, scale: float = 1.0, predictor: Sampler | None = None) -> None:
        check_positive("ScaledEpsilon", scale=scale)
        self.scale, self.predictor = scale, predictor

    @property
    def _predictor(self) -> Sampler:
        return self.predictor or DDIM()

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        if grid.clip_range is not None:
            raise ConfigurationError(
                f"ScaledEpsilon got a scheduler that clips x̂_0, to ±{grid.clip_range:g}; expected one with "
                "`clip_sample: false`, since what is clipped no longer follows from ε̂."
            )
        return [
            SamplerStep(tuple(scaled for operation in step.operations for scaled in self._scaled(operation)))
            for step in self._predictor.program(grid)
        ]

    def _scaled(self, operation: Denoise | Combine) -> list[Denoise | Combine]:
        if isinstance(operation, Combine) or operation.alpha == 0:
            return [operation]
        x0, epsilon = f"{operation.x0} as answered", f"{operation.epsilon} as answered"
        change = operation.sigma / operation.alpha * (1 - self.scale)
        return [
            replace(operation, x0=x0, epsilon=epsilon),
            Combine(operation.x0, {x0: 1.0, epsilon: change}),
            Combine(operation.epsilon, {epsilon: self.scale}),
        ]

    @property
    def of_ideal(self) -> Sampler:
        return self._predictor.of_ideal

    def levels_on(self, grid: SamplingGrid) -> SamplingGrid:
        return self._predictor.levels_on(grid)
