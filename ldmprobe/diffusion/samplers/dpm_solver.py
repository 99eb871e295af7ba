"""DPM-Solver++: multistep methods of second and third order."""

from __future__ import annotations

import math
from typing import ClassVar

from ldmprobe.diffusion.samplers.base import Combine, Move, Sampler, SamplerStep, denoise_at, moves
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.errors import ConfigurationError

FEW = 15  # steps, below which ``lower_order_final`` acts, as in diffusers


class DPMSolver(Sampler):
    r"""DPM-Solver++ (Lu et al., 2022, arXiv:2211.01095, algorithm 2), and its SDE form (there section 5): x̂_0 is
    extrapolated over :math:`\bar\lambda = \ln(\alpha/\sigma)` from the answers of the last steps. With h the rise
    of λ̄, E = e^{−h} and r = h_{prev}/h, second order ("2M", midpoint) is

    .. math:: z_s = \frac{\sigma_s}{\sigma_t} z_t + \alpha_s (1 - E)
              \Bigl[\bigl(1 + \tfrac{1}{2r}\bigr)\hat x_0 - \tfrac{1}{2r}\,\hat x_0^{prev}\Bigr]

    and the SDE's has E = e^{−2h}, (σ_s/σ_t) e^{−h} z_t and noise σ_s √(1 − E) ξ. Third order ("3M") adds the second
    difference, with the coefficients of diffusers. A program starts with a step of first order, DDIM's; so is the step
    to the data, where 1/r is 0.

    Args:
        order: 1, 2 or 3; the SDE's at most 2.
        sde: whether noise is added.
        lower_order_final: whether the last step of fewer than 15 is of first order also where it does not go to the
            data, and the one before at most of second.

    Raises:
        ConfigurationError: there is no such order.
    """

    name = "dpmpp"
    variants: ClassVar = {"dpmpp-2m": {}, "dpmpp-3m": {"order": 3}, "dpmpp-2m-sde": {"sde": True}}

    def __init__(self, order: int = 2, sde: bool = False, lower_order_final: bool = True) -> None:
        if order not in ((1, 2) if sde else (1, 2, 3)):
            raise ConfigurationError(
                f"DPMSolver got order {order}, sde {sde}; expected order 1, 2 or 3, of the SDE 1 or 2."
            )
        self.order, self.sde, self.lower_order_final = order, sde, lower_order_final

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        steps: list[SamplerStep] = []
        rises: list[float] = []  # h of the steps before this one, the last first, as far as there was signal
        for k, move in enumerate(moves(grid)):
            order = min(self.order, len(rises) + 1, self._most(grid.num_steps - k, grid.of_steps))
            names = [f"x0_{(k - j) % self.order}" for j in range(self.order)]
            z, *weights = self._weights(move, rises, order if move.sigma_s else 1)
            noise = move.sigma_s * math.sqrt(1 - move.decay**2) if self.sde else 0.0
            mix = {"z": z, **dict(zip(names, weights, strict=False))}
            steps.append(SamplerStep((denoise_at(grid, k, names[0]), Combine("z", mix, noise))))
            rises = [move.h, *rises] if move.has_signal else []
        return steps

    def _most(self, left: int, num_steps: int) -> int:
        """Return the highest order for a step after which, itself counted, ``left`` are left."""
        return left if self.lower_order_final and num_steps < FEW else self.order

    def _weights(self, move: Move, rises: list[float], order: int) -> list[float]:
        """Return the coefficients of z_t and of the last answers, newest first."""
        speed = 2 if self.sde else 1
        gain, H = 1 - move.decay**speed, speed * move.h
        z = move.sigma_s / move.sigma_t * (move.decay if self.sde else 1)
        if order == 1:
            return [z, move.alpha_s * gain]
        r0 = rises[0] / move.h
        if order == 2:
            return [z, move.alpha_s * gain * (1 + 0.5 / r0), -move.alpha_s * gain * 0.5 / r0]
        r1 = rises[1] / move.h
        slope, curve = 1 - gain / H, (gain - H) / H**2 + 0.5
        # d1 = (1 + a) newer − a older, d2 = (newer − older)/(r0 + r1), of the differences newer and older.
        a = r0 / (r0 + r1)
        newer = (slope * (1 + a) + curve / (r0 + r1)) / r0
        older = -(slope * a + curve / (r0 + r1)) / r1
        return [z, *(move.alpha_s * each for each in (gain + newer, older - newer, -older))]
