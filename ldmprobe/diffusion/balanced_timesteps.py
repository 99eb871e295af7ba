"""BalancedTimesteps: the sampler that a TimestepBalancer steers. It holds what was decided; it decides nothing
itself.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.timesteps import TimestepSampler, UniformLogSNR, UniformTimesteps
from ldmprobe.errors import ConfigurationError

MAX_LEVELS = 128  # of the table, whose size must not change: parts of sharded checkpoints are read into what is there


class BalancedTimesteps(TimestepSampler):
    """p(t) = floor · p_base(t) + (1 − floor) · p_steered(t), where p_steered has a given density over log-SNR λ; and a
    given factor on the loss.

    Both are tables over λ, linear between their levels and constant beyond them. Until ``steer`` is called it is its
    base. Its state is in the checkpoint; it is no buffer, so that it stays on the CPU and in full precision.

    Args:
        base: what it starts from and never leaves altogether; default: uniform.
        floor: share of the draws that stays the base's, the exploration floor.
    """

    def __init__(self, base: TimestepSampler | None = None, floor: float = 0.2) -> None:
        super().__init__()
        if not 0 < floor <= 1:
            raise ConfigurationError(f"BalancedTimesteps got floor {floor}; expected a number above 0, at most 1.")
        self.base, self.floor = base or UniformTimesteps(), floor
        self.adaptive = self.base.adaptive
        self.table = torch.full((3, MAX_LEVELS), torch.inf, dtype=torch.float64)  # log-SNR ascending, density, weight

    def steer(self, log_snr: Tensor, density: Tensor, weight: Tensor) -> None:
        """From now on draw by ``density`` per unit of log-SNR, up to a factor, and multiply the loss by ``weight``.

        Args:
            log_snr, density, weight: shape (L,), L at most 128, in any order of levels; the density at least 0 and
                somewhere above, weights above 0.

        Raises:
            ValueError: values that are not finite, or not of these signs.
        """
        table = torch.stack([log_snr, density, weight]).double().cpu()
        if (
            not bool(table.isfinite().all())
            or bool((density < 0).any())
            or float(density.sum()) <= 0
            or bool((weight <= 0).any())
        ):
            raise ValueError(f"expected finite densities of at least 0 and weights above 0, got {density} and {weight}")
        steered = torch.full_like(self.table, torch.inf)
        steered[:, : len(log_snr)] = table[:, table[0].argsort()]
        self.table = steered

    def probabilities(self, schedule: NoiseSchedule) -> Tensor:
        base = self.base.probabilities(schedule)
        if not self.is_steered:
            return base
        steered = UniformLogSNR().probabilities(schedule) * self._at(schedule, row=1)
        return self.floor * base + (1 - self.floor) * steered / steered.sum()

    def loss_factor(self, schedule: NoiseSchedule) -> Tensor:
        factor = self.base.loss_factor(schedule)
        return factor * self._at(schedule, row=2) if self.is_steered else factor

    def observe(self, t: Tensor, log_snr: Tensor, loss: Tensor) -> None:
        self.base.observe(t, log_snr, loss)

    @property
    def is_steered(self) -> bool:
        """Return whether ``steer`` has been called, in this run or the one that it goes on with."""
        return bool(self.table[0, 0].isfinite())

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"table": self.table.clone()}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self.table.copy_(state["table"])

    def _at(self, schedule: NoiseSchedule, row: int) -> Tensor:
        """A row of the table at every timestep, (T,)."""
        table = self.table[:, self.table[0].isfinite()].numpy()
        return torch.from_numpy(np.interp(schedule.log_snr.nan_to_num().numpy(), table[0], table[row]))
