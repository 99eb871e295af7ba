"""TrueLatents: real latents noised to the levels that a sampler visits, and what the network answers there."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.models.diffusion_model import DiffusionModel
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
        number: how many there are on all ranks together.
        mine: the numbers of those that count on this rank, (n,); more may follow, as in ``Ranks.even_share``.
        z0, noise: this rank's, (n, C, H, W).
    """

    def __init__(self, model: DiffusionModel, grid: SamplingGrid, held_out: HeldOut, number: int, ranks: Ranks) -> None:
        self.model, self.grid, self.number = model, grid, number
        self.mine, even = ranks.share(number), ranks.even_share(number)
        self.z0 = held_out.latents[even].to(model.device)
        self.condition = {name: value[even].to(model.device) for name, value in held_out.condition.items()}
        self.noise = sample_noise(even.tolist(), tuple(model.latent_shape), seed=0, stream=3).to(model.device)
        self._latest: tuple[int, TrueAnswer] | None = None

    def at(self, k: int) -> TrueAnswer:
        """Return the network's answers at the level that step ``k`` starts from."""
        if self._latest is None or self._latest[0] != k:
            alpha, sigma, told = (
                float(level[k]) for level in (self.grid.alpha_t, self.grid.sigma_t, self.grid.timesteps)
            )
            z_t = alpha * self.z0 + sigma * self.noise
            self._latest = k, TrueAnswer(z_t, *self.model.x0_and_epsilon(z_t, told, alpha, sigma, self.condition))
        return self._latest[1]
