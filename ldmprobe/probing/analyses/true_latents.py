"""TrueLatents: real latents noised to the levels that a sampler visits, and what the network answers there."""

from __future__ import annotations

from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.draws import Answer, Draws, Level, answered
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import Ranks


class TrueLatents:
    """Held-out latents noised to the level that each step starts from; the network is asked about them once a step,
    however many analyses look.

    Attributes:
        draws: the latents, each once, with their noise.
    """

    def __init__(self, model: DiffusionModel, grid: SamplingGrid, held_out: HeldOut, number: int, ranks: Ranks) -> None:
        self.model, self.grid = model, grid
        self.draws = Draws.of(held_out, number, 0, model.device, ranks, stream=3)
        self._latest: tuple[int, Answer] | None = None

    def at(self, k: int) -> Answer:
        """Return the network's answers at the level that step ``k`` starts from."""
        if self._latest is None or self._latest[0] != k:
            grid, draws = self.grid, self.draws
            level = Level(float(grid.alpha_t[k]), float(grid.sigma_t[k]), float(grid.timesteps[k]))
            self._latest = k, answered(self.model, level, draws.z0, draws.noise, draws.condition)
        return self._latest[1]
