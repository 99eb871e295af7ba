"""Resampling: steps taken several times over, from noise put back."""

from __future__ import annotations

import math

from ldmprobe.diffusion.samplers.base import Combine, Sampler, SamplerStep, moves, one_step_program
from ldmprobe.diffusion.samplers.ddim import DDPM
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.errors import check_numbers


class Resampling(Sampler):
    r"""A sampler whose every step but the last is taken several times: after each the latent is noised back to where
    the step began,

    .. math:: z_t = \tfrac{\alpha_t}{\alpha_s} z_s + \sqrt{\sigma_t^2 - \tfrac{\alpha_t^2}{\alpha_s^2}\sigma_s^2}\,\xi,

    by the forward process. With ``MeasurementGuidance(KnownPixels, Replacement)`` it is RePaint (Lugmayr et al., 2022,
    arXiv:2201.09865, algorithm 1), which lets what is filled in and what is known come to agree; with a perfect network
    and nothing known it changes no distribution. Its jumps are of one step.

    Args:
        num_resamples: how often each step is taken, U; each of the passes of the predictor's step.
        predictor: of one-step methods; default: DDPM, as there.

    Raises:
        ConfigurationError: a number is out of range; or, of a program, a multistep predictor.
    """

    name = "resampling"

    def __init__(self, num_resamples: int = 10, predictor: Sampler | None = None) -> None:
        check_numbers("Resampling", 1, num_resamples=num_resamples)
        self.num_resamples, self.predictor = num_resamples, predictor

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        *steps, last = one_step_program("Resampling", self.predictor or DDPM(), grid)
        resampled = []
        for step, move in zip(steps, moves(self.levels_on(grid)), strict=False):
            noise = move.sigma_t * math.sqrt(1 - move.decay**2)
            back = Combine("z", {"z": move.alpha_t / move.alpha_s}, noise)
            again = (*step.operations, back) * (self.num_resamples - 1)
            resampled.append(SamplerStep((*again, *step.operations)))
        return [*resampled, last]
