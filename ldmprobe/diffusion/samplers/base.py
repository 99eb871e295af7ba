"""What a sampler is: a program of two operations on named latents, the registers.

The same program runs on a network (``diffusion/trajectory.py``) and on the moments of Gaussian data
(``analysis/ideal.py``), where it is the exact path of a perfect network: whoever writes a sampler gets its ideal with
it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ldmprobe.diffusion.named import Named
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.errors import ConfigurationError


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

    @property
    def log_snr(self) -> float:
        """λ = ln α²/σ²; −∞ where nothing of the data is left."""
        if self.alpha == 0:
            return -math.inf
        return math.inf if self.sigma == 0 else 2 * math.log(self.alpha / self.sigma)


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
    def is_affine(self) -> bool:
        """Return whether it is affine in registers and noise where the network is: whether nothing is clipped."""
        return all(question.clip_range is None for question in self.questions)

    @property
    def reads(self) -> set[str]:
        """The registers that it reads before it has set them itself: other than ``z``, in a multistep method."""
        read, written = set[str](), set[str]()
        for operation in self.operations:
            if isinstance(operation, Denoise):
                sources, targets = {operation.source}, {operation.x0, operation.epsilon}
            else:
                sources, targets = set(operation.coefficients), {operation.target}
            read |= sources - written
            written |= targets
        return read

    @property
    def passes(self) -> int:
        """Return how often the network is asked."""
        return len(self.questions)


@dataclass(frozen=True)
class Move:
    """From one level to a cleaner one, in the terms that samplers are written in.

    Attributes:
        alpha_t, sigma_t: where a step starts.
        alpha_s, sigma_s: where it arrives.
    """

    alpha_t: float
    sigma_t: float
    alpha_s: float
    sigma_s: float

    @property
    def decay(self) -> float:
        """e^(−h), where h is by how much ln(α/σ) rises: 0 where it starts without signal or arrives without noise."""
        return self.alpha_t * self.sigma_s / (self.alpha_s * self.sigma_t)

    @property
    def h(self) -> float:
        """By how much ln(α/σ) rises, half the log-SNR: infinite where ``decay`` is 0."""
        return -math.log(self.decay) if self.decay else math.inf

    @property
    def has_signal(self) -> bool:
        """Return whether anything of the data is left where it starts."""
        return self.alpha_t > 0


class Sampler(Named, ABC):
    """A way of latents from noise to data along a grid. Registers other than ``z`` are kept from step to step.

    A subclass sets its ``name``, and keeps each of its settings, plain values, as the attribute of its name: records
    and fingerprints read them there.
    """

    @abstractmethod
    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        """Return the S steps along ``grid``. The first may read ``z`` alone.

        Raises:
            ConfigurationError: the sampler cannot take a step of this grid.
        """

    def fitted(self, loss: Callable[[Sampler], float]) -> Sampler:
        """Return the sampler with each setting that is left to be found, "auto", at the value whose ``loss`` is least:
        itself, where there is none.

        Args:
            loss: how far a sampler's ideal ends from real latents.
        """
        return self

    @property
    def of_ideal(self) -> Sampler:
        """The sampler of the perfect denoiser that its samples are compared with: itself, unless it mends faults of a
        network, which a perfect denoiser does not have.
        """
        return self

    def levels_on(self, grid: SamplingGrid) -> SamplingGrid:
        """Return the levels that it visits on ``grid``: every step starts where the one before arrived."""
        return grid.joined()


def moves(grid: SamplingGrid) -> list[Move]:
    """Return the S moves of ``grid``."""
    levels = (grid.alpha_t, grid.sigma_t, grid.alpha_s, grid.sigma_s)
    return [Move(*each) for each in zip(*(level.tolist() for level in levels), strict=True)]


def denoise_at(grid: SamplingGrid, k: int, x0: str = "x0") -> Denoise:
    """Return the question to the network about ``z`` at the level that step ``k`` of ``grid`` starts from, its x̂_0 to
    be kept in register ``x0``.
    """
    alpha, sigma, model_time = (float(level[k]) for level in (grid.alpha_t, grid.sigma_t, grid.timesteps))
    return Denoise(alpha, sigma, model_time, x0=x0, clip_range=grid.clip_range)


def denoise_between(grid: SamplingGrid, log_snr: Tensor, source: str = "z", suffix: str = "") -> list[Denoise]:
    """Return questions to the network about register ``source`` at further levels, (K,), answered in the registers
    ``x0`` and ``epsilon`` with ``suffix``.

    Raises:
        ConfigurationError: a level lies outside the schedule.
    """
    levels = zip(*(each.tolist() for each in grid.schedule.level_at(log_snr)), strict=True)
    x0, epsilon = "x0" + suffix, "epsilon" + suffix
    return [Denoise(alpha, sigma, told, source, x0, epsilon, grid.clip_range) for alpha, sigma, told in levels]


def one_step_program(owner: str, predictor: Sampler, grid: SamplingGrid) -> list[SamplerStep]:
    """Return the program of a predictor between whose steps ``owner`` changes the latents.

    Raises:
        ConfigurationError: a multistep method, since what it remembers would be of other latents.
    """
    steps = predictor.program(grid)
    if remembered := set().union(*(step.reads for step in steps)) - {"z"}:
        raise ConfigurationError(
            f"{owner} got the predictor {predictor.name}, a multistep method, which goes on from earlier answers "
            f"({', '.join(sorted(remembered))}) that are stale once it has changed the latents; take a one-step "
            "method, such as EulerMaruyama, DDIM or Heun."
        )
    return steps
