"""TrueLatents: real latents noised to the levels that a sampler visits, and what the network answers there."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.draws import Draws
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import Ranks


class TrueAnswer(NamedTuple):
    """The network's x̂_0 and ε̂ at z_t = α_t z_0 + σ_t ε, all (n, C, H, W)."""

    z_t: Tensor
    x0: Tensor
    epsilon: Tensor


class TrueLatents:
    """Held-out latents noised to the level that each step starts from; the network is asked about them once a step,
    however many analyses look.

    Attributes:
        draws: the latents, each once, with their noise.
    """

    def __init__(self, model: DiffusionModel, grid: SamplingGrid, held_out: HeldOut, number: int, ranks: Ranks) -> None:
        self.model, self.grid = model, grid
        self.draws = Draws.of(held_out, number, 0, model.device, ranks, stream=3)
        self._latest: tuple[int, TrueAnswer] | None = None

    def at(self, k: int) -> TrueAnswer:
        """Return the network's answers at the level that step ``k`` starts from."""
        if self._latest is None or self._latest[0] != k:
            alpha, sigma, told = (
                float(level[k]) for level in (self.grid.alpha_t, self.grid.sigma_t, self.grid.timesteps)
            )
            z_t = alpha * self.draws.z0 + sigma * self.draws.noise
            answer = self.model.x0_and_epsilon(z_t, told, alpha, sigma, self.draws.condition)
            self._latest = k, TrueAnswer(z_t, *answer)
        return self._latest[1]
