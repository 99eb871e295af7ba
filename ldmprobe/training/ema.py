"""Exponential moving average of a network's trainable parameters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError


class EMA(nn.Module):
    r"""θ̄ ← d_n θ̄ + (1 − d_n) θ after the n-th optimiser step, with d_n = min(decay, (1 + n)/(10 + n)).

    The warm-up (of TensorFlow's ExponentialMovingAverage) lets the average forget its random start. The average is a second
    network, ``self.network``: nothing is ever swapped into the live one, so a probe, a validation or a crash cannot leave the
    wrong weights behind. Parameters that are not trained, and buffers, are shared with the live network or copied, not averaged.

    Args:
        network: the live network.
        decay: the limit of d_n, in [0, 1).
        warmup: False takes ``decay`` from the first step.

    Raises:
        ConfigurationError: decay outside [0, 1).
    """

    num_updates: Tensor

    def __init__(self, network: nn.Module, decay: float = 0.9999, warmup: bool = True) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ConfigurationError(f"EMA decay is {decay}; expected a number in [0, 1), such as 0.9999.")
        frozen = {id(parameter): parameter for parameter in network.parameters() if not parameter.requires_grad}
        self.network = copy.deepcopy(network, frozen).requires_grad_(False)
        self.decay, self.warmup = decay, warmup
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.train(False)

    def train(self, mode: bool = True) -> EMA:
        """Stays in eval mode: the average is looked at, never trained."""
        return super().train(False)

    def decay_at(self, num_updates: int) -> float:
        """d_n for n = ``num_updates``."""
        return min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """After an optimiser step of ``network``."""
        self.num_updates += 1
        decay = self.decay_at(int(self.num_updates))
        pairs = [
            (average, live.detach().to(average))
            for average, live in zip(self.network.parameters(), network.parameters(), strict=True)
            if live.requires_grad
        ]
        torch._foreach_lerp_([average for average, _ in pairs], [live for _, live in pairs], 1 - decay)
        for average, live in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(live)
