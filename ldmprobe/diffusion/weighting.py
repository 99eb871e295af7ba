r"""Loss weights over noise levels: the catalog. Each is defined once, in ε-units, and converted to any prediction type
by one rule.

A weight w(λ) multiplies ‖ε̂ − ε‖². On another prediction's squared error it becomes w(λ) times
``Prediction.epsilon_error_scale``. Both are kept as logarithms, so that a weight that is infinite in one unit and
finite in another (v at zero terminal SNR) comes out finite.

What the optimizer sees is the product of weight and sampling density; ``diffusion/objective.py`` puts the two together.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, relu, softplus

from ldmprobe.diffusion.full_precision import Move, in_float32
from ldmprobe.diffusion.prediction import Prediction
from ldmprobe.errors import ConfigurationError

FINITE_LOG_SNR = 30.0
"""Noise levels beyond ±30 are weighted as if they were there: e⁻³⁰ is nothing, and nothing is infinite."""


class LossWeighting(nn.Module, ABC):
    """w(λ) in ε-units. A module, so that a learned weighting has parameters and its state is in the checkpoint.

    Attributes:
        sigma_data: the standard deviation of the data that it is for; None where it does not depend on it.
    """

    sigma_data: float | None = None

    @abstractmethod
    def log_weight(self, log_snr: Tensor) -> Tensor:
        """Return ln w(λ) for finite log-SNR (N,), w being a factor on ‖ε̂ − ε‖²."""

    def prediction_weight(self, log_snr: Tensor, prediction: Prediction) -> Tensor:
        """The same weight as a factor on the squared error of answers of this kind, shape (N,); finite at every
        log-SNR.
        """
        finite = log_snr.clamp(-FINITE_LOG_SNR, FINITE_LOG_SNR)
        return (self.log_weight(finite) + prediction.log_epsilon_error_scale(finite)).exp()

    def forward(self, errors: Tensor, weights: Tensor, log_snr: Tensor) -> Tensor:
        """The loss of each sample (N,) from its squared error, its (normalized) weight and its log-SNR."""
        return weights * errors


class UniformWeighting(LossWeighting):
    """Weight 1 on whatever the denoiser predicts: for ε this is L_simple (Ho et al., 2020, eq. 14); for v it is
    (SNR+1)/SNR in ε-units, for x_0 1/SNR. The default.
    """

    def log_weight(self, log_snr: Tensor) -> Tensor:
        raise NotImplementedError("UniformWeighting is defined on the prediction, not on ε; call prediction_weight.")

    def prediction_weight(self, log_snr: Tensor, prediction: Prediction) -> Tensor:
        return torch.ones_like(log_snr)


class SNRPower(LossWeighting):
    """w_ε = SNR^power.

    0 is L_simple in ε-units whatever is predicted ("SNR" weighting of x_0); with ``UniformLogSNR`` timesteps it is the
    variational bound (Kingma et al., 2021, arXiv:2107.00630, eq. 16). −1 weighs x_0 evenly; −2 is "inverse SNR" of x_0
    (Hang et al., 2023). Below −1 it has no limit at zero terminal SNR: use it with timesteps over the log-SNR, which
    leave that one out.
    """

    def __init__(self, power: float = 0.0) -> None:
        super().__init__()
        self.power = power

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return self.power * log_snr


class MinSNR(LossWeighting):
    """Min-SNR-γ, w_ε = min(SNR, γ)/SNR (Hang et al., 2023, arXiv:2303.09556, section 3.4)."""

    def __init__(self, gamma: float = 5.0) -> None:
        super().__init__()
        self.log_gamma = _log_positive(self, "gamma", gamma)

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return -relu(log_snr - self.log_gamma)


class MaxSNR(LossWeighting):
    """Max-SNR-γ, w_ε = max(SNR, γ)/SNR; γ = 1 is truncated SNR (Salimans & Ho, 2022, arXiv:2202.00512, section 4)."""

    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        self.log_gamma = _log_positive(self, "gamma", gamma)

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return relu(self.log_gamma - log_snr)


class SoftMinSNR(LossWeighting):
    """Soft-Min-SNR, w_ε = γ/(SNR + γ) (Crowson et al., 2024, arXiv:2401.11605)."""

    def __init__(self, gamma: float = 4.0) -> None:
        super().__init__()
        self.log_gamma = _log_positive(self, "gamma", gamma)

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return -softplus(log_snr - self.log_gamma)


class SNRPlusOne(LossWeighting):
    """w_ε = (SNR + 1)/SNR: an even weight on v, whatever is predicted (Salimans & Ho, 2022, section 4)."""

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return softplus(-log_snr)


class P2(LossWeighting):
    """P2, w_ε = 1/(k + SNR)^γ (Choi et al., 2022, arXiv:2204.00227, eq. 8)."""

    def __init__(self, k: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__()
        self.log_k, self.gamma = _log_positive(self, "k", k), gamma

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return -self.gamma * torch.logaddexp(torch.full_like(log_snr, self.log_k), log_snr)


class Debiased(LossWeighting):
    """Debiased estimation, w_ε = 1/√SNR with SNR at most 1,000 (Yu et al., 2023, arXiv:2310.08442)."""

    def __init__(self, max_snr: float = 1000.0) -> None:
        super().__init__()
        self.log_max_snr = _log_positive(self, "max_snr", max_snr)

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return -0.5 * log_snr.clamp(max=self.log_max_snr)


class EDM(LossWeighting):
    """EDM's, (σ² + σ_data²)/(σ σ_data)² on x_0, that is w_ε = 1 + 1/(σ_data² SNR) (Karras et al., 2022,
    arXiv:2206.00364, table 1).

    Args:
        sigma_data: standard deviation of the data: 1 for latents of LatentCodec's measured scale, 0.5 for pixels in
            [−1, 1] as in the paper. Give ``Preconditioned`` the same.
    """

    def __init__(self, sigma_data: float = 1.0) -> None:
        super().__init__()
        self.log_variance = 2 * _log_positive(self, "sigma_data", sigma_data)
        self.sigma_data = sigma_data

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return softplus(-log_snr - self.log_variance)


class Sigmoid(LossWeighting):
    """w_ε = sigmoid(b − λ) on the measure dλ: use it with ``UniformLogSNR`` or ``AdaptiveLoss`` timesteps (Kingma &
    Gao, 2023, arXiv:2303.00848; b = −1 in Hoogeboom et al., 2024, arXiv:2410.19324).
    """

    def __init__(self, bias: float = -1.0) -> None:
        super().__init__()
        self.bias = bias

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return logsigmoid(self.bias - log_snr)


class LearnedUncertainty(LossWeighting):
    r"""EDM2's: the loss becomes :math:`w\,\|\Delta\|^2 / e^{u(\lambda)} + u(\lambda)`, with u a linear map of Fourier
    features of the noise level that is trained along (Karras et al., 2024, arXiv:2312.02696, eq. 14–16). At its optimum
    u = ln E[w‖Δ‖²]: every level's error counts 1.

    Args:
        base: the weight w; default: EDM's.
        num_features: of the noise level.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, base: LossWeighting | None = None, num_features: int = 128) -> None:
        super().__init__()
        self.base = base or EDM()
        self.sigma_data = self.base.sigma_data
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(num_features))
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_features))
        self.linear = nn.Linear(num_features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def _apply(self, fn: Move, recurse: bool = True) -> LearnedUncertainty:
        """Move with the training module, but stay in float32: the features' phases, of up to some hundred, need its
        digits.
        """
        super()._apply(in_float32(fn), recurse)
        return self

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return self.base.log_weight(log_snr)

    def prediction_weight(self, log_snr: Tensor, prediction: Prediction) -> Tensor:
        return self.base.prediction_weight(log_snr, prediction)

    def uncertainty(self, log_snr: Tensor) -> Tensor:
        """u(λ), shape (N,)."""
        # EDM's c_noise = ln(σ)/4, and σ² = 1/SNR.
        c_noise = -log_snr.clamp(-FINITE_LOG_SNR, FINITE_LOG_SNR).to(self.frequencies)[:, None] / 8
        features = math.sqrt(2) * (c_noise * self.frequencies + self.phases).cos()
        # Not by the layer's own product, which autocast would take in half precision.
        return (features * self.linear.weight).sum(1) / math.sqrt(len(self.frequencies))

    def forward(self, errors: Tensor, weights: Tensor, log_snr: Tensor) -> Tensor:
        u = self.uncertainty(log_snr)
        return weights * errors / u.exp() + u


def _log_positive(weighting: LossWeighting, name: str, value: float) -> float:
    if not value > 0:
        raise ConfigurationError(f"{type(weighting).__name__} got {name} {value}; expected a number above 0.")
    return math.log(value)
