"""What a sampler is: a program of two operations on named latents, the registers.

The same program runs on a network (``diffusion/trajectory.py``) and on the moments of Gaussian data
(``analysis/ideal.py``), where it is the exact path of a perfect network: whoever writes a sampler gets its ideal with
it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from ldmprobe.diffusion.named import Named
from ldmprobe.diffusion.schedule import SamplingGrid


@dataclass(frozen=True)
class Denoise:
    """Ask the network about register ``source`` at the level (α, σ); put its answer into the registers ``x0`` and
    ``epsilon``.

    Attributes:
        model_time: what the network is told.
        clip_range: where x̂_0 is clipped, or None; with a clip the program is not affine, and has no ideal.
    """

    alpha: float
    sigma: float
    model_time: float
    source: str = "z"
    x0: str = "x0"
    epsilon: str = "epsilon"
    clip_range: float | None = None


@dataclass(frozen=True)
class Combine:
    """Set register ``target`` to Σ c_r · r over ``coefficients``, plus ``noise`` · ξ, ξ ~ N(0, I) of this step and
    sample alone.
    """

    target: str
    coefficients: Mapping[str, float]
    noise: float = 0.0


@dataclass(frozen=True)
class SamplerStep:
    """The operations that take register ``z`` from the level a step starts from to the one it arrives at."""

    operations: tuple[Denoise | Combine, ...]

    @property
    def questions(self) -> tuple[Denoise, ...]:
        """The step's questions to the network."""
        return tuple(operation for operation in self.operations if isinstance(operation, Denoise))

    @property
    def passes(self) -> int:
        """How often the network is asked."""
        return len(self.questions)


class Sampler(Named, ABC):
    """How latents go from noise to data along a grid. Registers other than ``z`` are kept from step to step.

    A subclass sets its ``name``, and keeps each of its settings, plain values, as the attribute of its name: records
    and fingerprints read them there.
    """

    @abstractmethod
    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        """Return the S steps along ``grid``. The first may read ``z`` alone.

        Raises:
            ConfigurationError: the sampler cannot take a step of this grid.
        """

    def levels_on(self, grid: SamplingGrid) -> SamplingGrid:
        """Return the levels that it visits on ``grid``: every step starts where the one before arrived."""
        return grid.joined()


def denoise_at(grid: SamplingGrid, k: int) -> Denoise:
    """Return the question to the network about ``z`` at the level that step ``k`` of ``grid`` starts from."""
    alpha, sigma, model_time = (float(level[k]) for level in (grid.alpha_t, grid.sigma_t, grid.timesteps))
    return Denoise(alpha, sigma, model_time, clip_range=grid.clip_range)
