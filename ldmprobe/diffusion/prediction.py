"""What a denoiser predicts, and how to get from one to the other: ε, x_0 ("sample"), v = α ε − σ x_0 and flow velocity u = ε − x_0.

v: Salimans & Ho, 2022 (arXiv:2202.00512), section 4. u, with α = 1 − σ: Lipman et al., 2023 (arXiv:2210.02747).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def prediction_target(prediction_type: str, x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the denoiser should answer at z_t = α x_0 + σ ε. All tensors broadcast to (N, …)."""
    if prediction_type == "epsilon":
        return epsilon
    if prediction_type == "sample":
        return x0
    if prediction_type == "flow":
        return epsilon - x0
    return alpha * epsilon - sigma * x0


def to_x0_and_epsilon(
    prediction_type: str, prediction: Tensor, z_t: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> tuple[Tensor, Tensor]:
    """(x̂_0, ε̂) of a prediction at z_t = α x_0 + σ ε (any shape).

    An ε-prediction says nothing about x_0 where α = 0, nor an x_0-prediction about ε where σ = 0: the result is not
    finite there.
    """
    if prediction_type == "epsilon":
        return (z_t - sigma * prediction) / alpha, prediction
    if prediction_type == "sample":
        return prediction, (z_t - alpha * prediction) / sigma
    if prediction_type == "flow":
        return z_t - sigma * prediction, z_t + alpha * prediction
    return alpha * z_t - sigma * prediction, alpha * prediction + sigma * z_t


def epsilon_error_scale(prediction_type: str, log_snr: Tensor) -> Tensor:
    """Factor from the squared error of a prediction to that of the ε it implies: ‖Δε‖² = factor · ‖Δprediction‖².

    ε: 1.  x_0: SNR.  v: SNR/(SNR+1).  u: α², α = √SNR/(1+√SNR).  Multiplying a weight in ε-units by it gives the weight on the prediction's own error.
    """
    return log_epsilon_error_scale(prediction_type, log_snr).exp()


def log_epsilon_error_scale(prediction_type: str, log_snr: Tensor) -> Tensor:
    """Its logarithm."""
    if prediction_type == "epsilon":
        return torch.zeros_like(log_snr)
    if prediction_type == "sample":
        return log_snr
    if prediction_type == "flow":
        return 2 * logsigmoid(log_snr / 2)
    return logsigmoid(log_snr)
