r"""Ways to guide by a measurement y = A x + τ ξ: approximations of :math:`\nabla_z \ln p(y \mid z_t)`.

All know of x at z_t what the network says: :math:`\hat x_0(z_t)`, and its derivative. In latent space A is
A ∘ decode, linearized at x̂_0; of pixels it is A itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldmprobe.analysis.gmres import gmres
from ldmprobe.diffusion.named import Named
from ldmprobe.errors import check_numbers, check_positive


@dataclass(frozen=True)
class Expected:
    """The measurement that a network's x̂_0 at z_t would give, beside the real one.

    Attributes:
        residual: y − A x̂_0, (N, …).
        noise: τ.
        alpha, sigma: the level, α above 0.
        pull: u ↦ Jᵀ Aᵀ u (N, C, H, W), where J = ∂x̂_0/∂z_t: one pass backwards through the network.
        push: w ↦ A w of latents (N, C, H, W).
        inverse: u ↦ A⁺ u, latents of the least change that gives u.
    """

    residual: Tensor
    noise: float
    alpha: float
    sigma: float
    pull: Callable[[Tensor], Tensor]
    push: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


class MeasurementMethod(Named, ABC):
    """A way to guide by a measurement. Name and settings are kept as a ``Sampler``'s.

    Attributes:
        differentiates: whether it asks for derivatives of the network.
        inverts: whether it asks for A⁺, which in latent space there is not.
    """

    differentiates: ClassVar[bool] = True
    inverts: ClassVar[bool] = False

    @abstractmethod
    def gradient(self, expected: Expected) -> Tensor:
        r"""Return :math:`\nabla_z \ln p(y \mid z_t)`, as far as the method knows it, (N, C, H, W)."""


class MMPS(MeasurementMethod):
    r"""Moment matching (Rozet et al., 2024, arXiv:2405.13712, eqs. 15 to 19): p(x | z_t) is taken for a Gaussian with
    the mean and covariance that the network implies, :math:`V = \sigma^2/\alpha\; \partial\hat x_0/\partial z_t`, so
    that

    .. math:: \nabla_z \ln p(y \mid z_t) = J^T A^T (A V A^T + \tau^2)^{-1} (y - A \hat x_0)

    It is exact for Gaussian data.

    Args:
        num_solver_steps: of GMRES, which inverts the matrix; each is a pass backwards through the network.

    Raises:
        ConfigurationError: fewer than one.
    """

    name = "MMPS"

    def __init__(self, num_solver_steps: int = 5) -> None:
        check_numbers("MMPS", 1, num_solver_steps=num_solver_steps)
        self.num_solver_steps = num_solver_steps

    def gradient(self, expected: Expected) -> Tensor:
        gain = expected.sigma**2 / expected.alpha

        def covariance(u: Tensor) -> Tensor:
            """Return (A V Aᵀ + τ²) u."""
            return expected.push(gain * expected.pull(u)) + expected.noise**2 * u

        return expected.pull(gmres(covariance, expected.residual, self.num_solver_steps))


class DPS(MeasurementMethod):
    r"""Diffusion posterior sampling (Chung et al., 2023, arXiv:2209.14687, algorithm 1): down the slope of the distance
    to the measurement,

    .. math:: \nabla_z \ln p(y \mid z_t) \approx -\frac{\zeta}{\sigma}\, \nabla_z \lVert y - A\hat x_0\rVert

    The paper moves the latents by ζ' ∇‖·‖ after each step of DDPM, so that its ζ' depends on how many steps there are.
    Here it is a score, for every sampler: over a rise of the log-SNR by Δ, DDPM moves the latents by
    :math:`\zeta\sigma(1 - e^{-\Delta})\nabla\lVert\cdot\rVert`, and by next to nothing near the data. It knows no τ.

    Args:
        step: ζ, above 0.

    Raises:
        ConfigurationError: not above 0.
    """

    name = "DPS"

    def __init__(self, step: float = 4.0) -> None:
        check_positive("DPS", step=step)
        self.step = step

    def gradient(self, expected: Expected) -> Tensor:
        residual = expected.residual
        distance = residual.flatten(1).norm(dim=1).view(-1, *[1] * (residual.ndim - 1))
        return self.step / expected.sigma * expected.pull(residual / distance.clamp(min=1e-12))


class Replacement(MeasurementMethod):
    r"""What is measured of x̂_0 is replaced by the measurement, :math:`\hat x_0 + A^+ (y - A\hat x_0)`, as if it had no
    noise (Song et al., 2021, arXiv:2011.13456, appendix I.2; in this form Wang et al., 2023, arXiv:2212.00490, eq. 13).

    It asks for no derivatives, and does not tell the network what the measurement says of the rest: it throws part of
    the information away. With the sampler ``RePaint`` less of it.
    """

    name = "replacement"
    differentiates = False
    inverts = True

    def gradient(self, expected: Expected) -> Tensor:
        return expected.alpha / expected.sigma**2 * expected.inverse(expected.residual)
