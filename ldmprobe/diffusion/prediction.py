r"""What a network predicts, and the way from its answer to (x_0, ε). One object a kind; nothing else tells kinds apart.

At z_t = α x_0 + σ ε a network may answer with

.. math:: \epsilon, \qquad x_0, \qquad v = \alpha \epsilon - \sigma x_0, \qquad u = \epsilon - x_0.

v: Salimans & Ho, 2022 (arXiv:2202.00512), section 4. u: Lipman et al., 2023 (arXiv:2210.02747), where α = 1 − σ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ldmprobe.types import kinds_of

Level = Tensor | float
"""α or σ of a noise level: a number, or a tensor that broadcasts to the latents (N, …)."""


class Prediction(ABC):
    """A kind of answer that a network may give. A subclass of one's own is used like those below.

    Attributes:
        name: what records and model cards call it; for the kinds that diffusers knows, diffusers' ``prediction_type``.
    """

    name: ClassVar[str]

    @abstractmethod
    def target(self, x0: Tensor, epsilon: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Return the right answer at z_t = α x_0 + σ ε, in the shape of ``x0`` (N, …)."""

    @abstractmethod
    def x0_and_epsilon(self, answer: Tensor, z_t: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """Return the (x̂_0, ε̂) that an answer at z_t (N, …) implies: α x̂_0 + σ ε̂ = z_t."""

    @abstractmethod
    def log_epsilon_error_scale(self, log_snr: Tensor) -> Tensor:
        """Return the logarithm of ``epsilon_error_scale``, in the shape of ``log_snr``."""

    def shifted(self, answer: Tensor, gradient: Tensor, alpha: float, sigma: float) -> Tensor:
        r"""Return the answer whose score has ``gradient`` (N, …) added to it: :math:`\hat\epsilon - \sigma g` and
        :math:`\hat x_0 + \sigma^2/\alpha\, g`. The right answer has to be linear in (x_0, ε), and α above 0.
        """
        return answer + self.target(sigma**2 / alpha * gradient, -sigma * gradient, alpha, sigma)

    def epsilon_error_scale(self, log_snr: Tensor) -> Tensor:
        """Return the factor from an answer's squared error to that of the ε it implies: ‖Δε‖² = factor · ‖Δanswer‖².

        A weight in ε-units times this factor is the weight on the answer's own error.
        """
        return self.log_epsilon_error_scale(log_snr).exp()


class EpsilonPrediction(Prediction):
    """The noise ε. It says nothing about x_0 where α = 0: x̂_0 is not finite there. ‖Δε‖² = 1 · ‖Δε‖²."""

    name = "epsilon"

    def target(self, x0: Tensor, epsilon: Tensor, alpha: Level, sigma: Level) -> Tensor:
        return epsilon

    def x0_and_epsilon(self, answer: Tensor, z_t: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        return (z_t - sigma * answer) / alpha, answer

    def log_epsilon_error_scale(self, log_snr: Tensor) -> Tensor:
        return torch.zeros_like(log_snr)


class SamplePrediction(Prediction):
    """The clean latent x_0. It says nothing about ε where σ = 0: ε̂ is not finite there. ‖Δε‖² = SNR · ‖Δx_0‖²."""

    name = "sample"

    def target(self, x0: Tensor, epsilon: Tensor, alpha: Level, sigma: Level) -> Tensor:
        return x0

    def x0_and_epsilon(self, answer: Tensor, z_t: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        return answer, (z_t - alpha * answer) / sigma

    def log_epsilon_error_scale(self, log_snr: Tensor) -> Tensor:
        return log_snr


class VPrediction(Prediction):
    """v = α ε − σ x_0, for processes with α² + σ² = 1. ‖Δε‖² = SNR/(SNR + 1) · ‖Δv‖²."""

    name = "v_prediction"

    def target(self, x0: Tensor, epsilon: Tensor, alpha: Level, sigma: Level) -> Tensor:
        return alpha * epsilon - sigma * x0

    def x0_and_epsilon(self, answer: Tensor, z_t: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        return alpha * z_t - sigma * answer, alpha * answer + sigma * z_t

    def log_epsilon_error_scale(self, log_snr: Tensor) -> Tensor:
        return logsigmoid(log_snr)


class VelocityPrediction(Prediction):
    """The velocity u = ε − x_0, of rectified flow where α + σ = 1; elsewhere x_0 = (z − σ u)/(α + σ). ‖Δε‖² =
    α²/(α + σ)² · ‖Δu‖², α/(α + σ) = √SNR/(1 + √SNR).
    """

    name = "flow"

    def target(self, x0: Tensor, epsilon: Tensor, alpha: Level, sigma: Level) -> Tensor:
        return epsilon - x0

    def x0_and_epsilon(self, answer: Tensor, z_t: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        total = alpha + sigma
        return (z_t - sigma * answer) / total, (z_t + alpha * answer) / total

    def log_epsilon_error_scale(self, log_snr: Tensor) -> Tensor:
        return 2 * logsigmoid(log_snr / 2)


KINDS: dict[str, Prediction] = {
    kind.name: kind for kind in (EpsilonPrediction(), SamplePrediction(), VPrediction(), VelocityPrediction())
}
"""The kinds above by name."""


def prediction_named(name: str) -> Prediction | None:
    """Return the kind of that name, one of the above or one of the user's own that has been imported; None if there is
    none.
    """
    kinds = kinds_of(Prediction)  # type: ignore[type-abstract]
    own = (kind() for kind in kinds if kind.name == name)
    return KINDS.get(name) or next(own, None)
