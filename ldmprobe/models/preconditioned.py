r"""Wrappers that let a network of diffusers learn a variance-exploding process: EDM's preconditioning, ε, and scores.

All are told σ itself, by a schedule whose process has α = 1 (``VESDE``, ``EDMProcess``), and follow the Denoiser
protocol. They see z and σ in float32 and do their own arithmetic there, whatever the precision of the network: of σ =
80 in bfloat16 an x_0 of unit scale would be a rounding error.
"""

from __future__ import annotations

from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import at_least_float32
from ldmprobe.models.denoiser import Condition, as_denoiser
from ldmprobe.models.wrapper import NetworkWrapper


class Preconditioned(NetworkWrapper):
    r"""EDM's preconditioning (Karras et al., 2022, arXiv:2206.00364, eq. 7 and table 1): a network F answers x_0 by

    .. math::
        \hat x_0 = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}\, z
            + \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}\,
            F\!\left(\frac{z}{\sqrt{\sigma^2 + \sigma_d^2}},\ \tfrac14 \ln \sigma\right)

    With ``EDM`` weights every level's loss on F counts 1.

    Args:
        network: F; a network of diffusers, or one that follows the Denoiser protocol. It is told ¼ ln σ.
        sigma_data: σ_d, the standard deviation of the data: 1 for latents of LatentCodec's measured scale, 0.5 for
            pixels in [−1, 1] as in the paper. Give ``EDM`` the same.

    Raises:
        ConfigurationError: ``sigma_data`` is not above 0, or the network is in a wrapper already.
    """

    answers = "sample"

    def __init__(self, network: nn.Module, sigma_data: float = 1.0) -> None:
        super().__init__(network, sigma_data=sigma_data)
        self.sigma_data = sigma_data

    def forward(self, z_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        z, level = _full(z_t, sigma)
        variance = level**2 + self.sigma_data**2
        answer = as_denoiser(self.network)(z / variance.sqrt(), level.flatten().log() / 4, condition)
        return self.sigma_data**2 / variance * z + level * self.sigma_data / variance.sqrt() * answer.to(z)


class EpsilonNetwork(NetworkWrapper):
    r"""A network F that answers ε of a variance-exploding process, shown latents of unit scale as it would be of a
    variance-preserving one (Karras et al., 2022, arXiv:2206.00364, table 1):

    .. math:: \hat\epsilon = F\!\left(\frac{z}{\sqrt{\sigma^2 + \sigma_d^2}},\ \tfrac14 \ln \sigma\right)

    Args:
        network, sigma_data: as ``Preconditioned``'s.

    Raises:
        ConfigurationError: ``sigma_data`` is not above 0, or the network is in a wrapper already.
    """

    answers = "epsilon"

    def __init__(self, network: nn.Module, sigma_data: float = 1.0) -> None:
        super().__init__(network, sigma_data=sigma_data)
        self.sigma_data = sigma_data

    def forward(self, z_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        z, level = _full(z_t, sigma)
        scaled = z / (level**2 + self.sigma_data**2).sqrt()
        return as_denoiser(self.network)(scaled, level.flatten().log() / 4, condition).to(z)


class ScoreNetwork(NetworkWrapper):
    """A score network as a denoiser: s(z, σ) = ∇ ln p(z; σ) gives ε̂ = −σ s (Song & Ermon, 2019, arXiv:1907.05600; Song
    et al., 2021, arXiv:2011.13456).

    Args:
        network: s, told σ: a ``diffusers.UNet2DModel`` with ``time_embedding_type: fourier`` (NCSN++), which divides
            its answer by σ, or one that follows the Denoiser protocol.
    """

    answers = "epsilon"

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)

    def forward(self, z_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        z, level = _full(z_t, sigma)
        return -level * as_denoiser(self.network, scores=True)(z, level.flatten(), condition).to(z)


def _full(z_t: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return z and σ, shaped to multiply it, in float32 at least."""
    z = z_t.to(at_least_float32(z_t.dtype))
    return z, sigma.to(z).view(-1, *(1,) * (z.ndim - 1))
