"""Langevin's dynamics: as a corrector after another sampler's steps, and alone, annealed."""

from __future__ import annotations

import copy
import math
from abc import ABC
from collections.abc import Callable
from typing import Literal, Self

from scipy.optimize import minimize_scalar

from ldmprobe.diffusion.samplers.base import (
    Combine,
    Denoise,
    Sampler,
    SamplerStep,
    denoise_at,
    denoise_between,
    moves,
    one_step_program,
)
from ldmprobe.diffusion.samplers.sde import EulerMaruyama
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.errors import ConfigurationError, check_numbers

_SMALLEST = 1e-4  # step that is looked at to find the best


class Langevin(Sampler, ABC):
    r"""Langevin's dynamics at a noise level, towards the distribution of real latents there:

    .. math:: z \leftarrow z + a \nabla \ln q(z) + \sqrt{2a}\,\xi = z - \tfrac{a}{\sigma}\,\hat\epsilon + \sqrt{2a}\,\xi

    In a direction of variance v its stationary variance is v/(1 − a/2v), too wide by a/2v, and it diverges from a = 2v
    on. The step is given as a/σ², the same at all levels, and v is at least σ². Where it is "auto", it is the
    one whose ideal ends closest to real latents; Song's corrector takes it from norms over the batch, so that a sample
    depends on its neighbors, and is no affine map.

    Attributes:
        step: a/σ², above 0, at most 1; or "auto".
    """

    def __init__(self, step: float | Literal["auto"]) -> None:
        if step != "auto" and not (isinstance(step, float | int) and 0 < step <= 1):
            raise ConfigurationError(
                f"{type(self).__name__} got step {step}; expected a number above 0, at most 1, or 'auto'. It is that "
                "of Langevin's dynamics over σ², which diverge from 2 on."
            )
        self.step = step

    def fitted(self, loss: Callable[[Sampler], float]) -> Self:
        if self.step != "auto":
            return self
        found = minimize_scalar(
            lambda log_step: loss(self._with_step(math.exp(log_step))),
            bounds=(math.log(_SMALLEST), 0.0),
            options={"xatol": 0.02},
        )
        return self._with_step(float(f"{math.exp(found.x):.3g}"))

    def _with_step(self, step: float) -> Self:
        other = copy.copy(self)
        other.step = step
        return other

    def _dynamics(self, question: Denoise, number: int) -> list[Denoise | Combine]:
        """Return the operations of so many steps at the level of ``question``."""
        if self.step == "auto":
            raise ConfigurationError(
                f"The step of {type(self).__name__} is 'auto', which is found from real latents, and there are none "
                "here; give data, or a number such as 0.1."
            )
        gain = -self.step * question.sigma
        change = Combine("z", {"z": 1.0, question.epsilon: gain}, math.sqrt(2 * self.step) * question.sigma)
        return [question, change] * number


class PredictorCorrector(Langevin):
    """A sampler whose every step but the last is followed by steps of Langevin's dynamics at the level where it arrived
    (Song et al., 2021, arXiv:2011.13456, algorithms 2 and 3, with a fixed step; their signal-to-noise ratio r is a step
    of about 2 r²).

    Args:
        step: a/σ² of each correction, above 0, at most 1; or "auto", found from the spectrum of real latents.
        num_corrections: per step, each of one pass.
        predictor: of one-step methods, such as EulerMaruyama, the default, or DDIM.

    Raises:
        ConfigurationError: a number is out of range.
    """

    name = "predictor-corrector"

    def __init__(
        self, step: float | Literal["auto"] = 0.05, num_corrections: int = 1, predictor: Sampler | None = None
    ) -> None:
        super().__init__(step)
        check_numbers("PredictorCorrector", 1, num_corrections=num_corrections)
        self.num_corrections, self.predictor = num_corrections, predictor

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        arrivals = 2 * (grid.alpha_s / grid.sigma_s).log()[:-1]
        *steps, last = one_step_program("PredictorCorrector", self.predictor or EulerMaruyama(), grid)
        questions = denoise_between(grid, arrivals, suffix="_c")
        corrected = [
            SamplerStep((*step.operations, *self._dynamics(question, self.num_corrections)))
            for step, question in zip(steps, questions, strict=True)
        ]
        return [*corrected, last]


class AnnealedLangevin(Langevin):
    """Steps of Langevin's dynamics at each level of the grid in turn, and a denoising step at the end (Song & Ermon,
    2019, arXiv:1907.05600, algorithm 1; 2020, arXiv:2006.09011, algorithm 1, where the step is ε/σ_L²).

    Between two levels z/α stays as it is. A level without signal is left by DDPM's step. Made for hundreds of levels.

    Args:
        step: a/σ², above 0, at most 1; or "auto", found from the spectrum of real latents.
        num_steps_per_level: each of one pass.
        denoise: whether the last level is left by a denoising step.

    Raises:
        ConfigurationError: a number is out of range.
    """

    name = "annealed-langevin"

    def __init__(self, step: float | Literal["auto"] = 0.5, num_steps_per_level: int = 5, denoise: bool = True) -> None:
        super().__init__(step)
        check_numbers("AnnealedLangevin", 1, num_steps_per_level=num_steps_per_level)
        self.num_steps_per_level, self.denoise = num_steps_per_level, denoise

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        steps = []
        for k, move in enumerate(moves(grid)):
            question = denoise_at(grid, k)
            operations: list[Denoise | Combine] = []
            if not move.has_signal:
                operations += [question, Combine("z", {"x0": move.alpha_s}, move.sigma_s)]
            else:
                operations += self._dynamics(question, self.num_steps_per_level)
                if self.denoise and k == grid.num_steps - 1:
                    operations += [question, Combine("z", {"x0": move.alpha_s, "epsilon": move.sigma_s})]
                else:
                    operations.append(Combine("z", {"z": move.alpha_s / move.alpha_t}))
            steps.append(SamplerStep(tuple(operations)))
        return steps
