"""Loss weights over noise levels. Each is defined once, in ε-units, and converted to any prediction type by one rule.

A weight w(λ) multiplies ‖ε̂ − ε‖². On another prediction's error it becomes w(λ) · :func:`epsilon_error_scale`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.prediction import epsilon_error_scale


class LossWeighting(nn.Module, ABC):
    """w(λ) in ε-units. A module, so that an adaptive weighting can keep its state in the checkpoint."""

    @abstractmethod
    def epsilon_weight(self, log_snr: Tensor) -> Tensor:
        """w(λ) for each log-SNR (N,), as a factor on ‖ε̂ − ε‖²."""

    def prediction_weight(self, log_snr: Tensor, prediction_type: str) -> Tensor:
        """The same weight as a factor on the squared error of ``prediction_type``, shape (N,)."""
        return self.epsilon_weight(log_snr) * epsilon_error_scale(prediction_type, log_snr)


class PlainWeighting(LossWeighting):
    """Weight 1 on whatever the denoiser predicts: for ε this is L_simple (Ho et al., 2020, eq. 14); for v it is
    (SNR+1)/SNR in ε-units, for x_0 1/SNR. The default."""

    def epsilon_weight(self, log_snr: Tensor) -> Tensor:
        raise NotImplementedError("PlainWeighting is defined on the prediction, not on ε; call prediction_weight.")

    def prediction_weight(self, log_snr: Tensor, prediction_type: str) -> Tensor:
        return torch.ones_like(log_snr)


class MinSNR(LossWeighting):
    """Min-SNR-γ, w_ε = min(SNR, γ)/SNR (Hang et al., 2023, arXiv:2303.09556, section 3.4)."""

    def __init__(self, gamma: float = 5.0) -> None:
        super().__init__()
        self.gamma = gamma

    def epsilon_weight(self, log_snr: Tensor) -> Tensor:
        return (self.gamma * (-log_snr).exp()).clamp(max=1.0)
