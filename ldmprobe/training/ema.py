"""Exponential moving average of a network's trainable parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import Move, at_least_float32, in_float32
from ldmprobe.errors import ConfigurationError
from ldmprobe.pretrained.lora import has_lora

_UPDATED_AT_ONCE = 64  # parameters: for the update those in half precision are copied to float32


class EMA(nn.Module):
    r"""θ̄ ← d_n θ̄ + (1 − d_n) θ after the n-th optimizer step, with d_n = min(decay, (1 + n)/(10 + n)).

    The warm-up (of TensorFlow's ExponentialMovingAverage) lets the average forget its random start. The average is a
    second network, ``self.network``: nothing is ever swapped into the live one, so a probe, a validation or a crash
    cannot leave the wrong weights behind. Parameters that are not trained, and buffers, are shared with the live
    network or copied, not averaged.

    The average stays in float32 at least, whatever precision the live network is trained in: a step of (1 − d)(θ − θ̄)
    is often too small to change a number of eight significant bits. Probes and samples of the average therefore run in
    float32. The exception is the frozen base of a LoRA, which stays shared with the live network in its precision; peft
    casts between it and the averaged updates.

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
        self._averaged = [parameter.requires_grad for parameter in network.parameters()]
        self._shares_half = has_lora(network)
        shared = {
            id(parameter): parameter
            for parameter in network.parameters()
            if not parameter.requires_grad
            and (self._shares_half or parameter.dtype == at_least_float32(parameter.dtype))
        }
        self.network = copy.deepcopy(network, shared).requires_grad_(False)
        self._apply(lambda tensor: tensor)
        self.decay, self.warmup = decay, warmup
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self._known_updates: int | None = 0  # the buffer's number, so that no step waits for the device
        self.register_load_state_dict_post_hook(EMA._forget_updates)
        self.train(False)

    def train(self, mode: bool = True) -> EMA:
        """Stays in eval mode: the average is looked at, never trained."""
        return super().train(False)

    def _apply(self, fn: Move, recurse: bool = True) -> EMA:
        """Move with the training module, but keep what is averaged in float32 at least."""
        averaged = zip(self.network.parameters(), self._averaged, strict=True)
        keep = {id(parameter) for parameter, is_averaged in averaged if is_averaged}
        dtype = fn(torch.empty(0, dtype=torch.float32)).dtype
        if not self._shares_half and not all(self._averaged) and dtype != at_least_float32(dtype):
            # From here on the live network has what is frozen in half precision.
            self.network = copy.deepcopy(self.network)
        widen = in_float32(fn)
        super()._apply(
            lambda tensor: fn(tensor) if self._shares_half and id(tensor) not in keep else widen(tensor), recurse
        )
        return self

    def decay_at(self, num_updates: int) -> float:
        """d_n for n = ``num_updates``."""
        return min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warmup else self.decay

    def _forget_updates(self, *_: object) -> None:
        self._known_updates = None

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """After an optimizer step of ``network``."""
        self.num_updates += 1
        self._known_updates = int(self.num_updates) if self._known_updates is None else self._known_updates + 1
        pairs = [
            (average, live)
            for average, live in zip(self.network.parameters(), network.parameters(), strict=True)
            if live.requires_grad
        ]
        move_averages(pairs, 1 - self.decay_at(self._known_updates))
        for average, live in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(live)


@torch.no_grad()
def move_averages(pairs: Sequence[tuple[Tensor, Tensor]], share: float) -> None:
    """θ̄ ← θ̄ + share (θ − θ̄), in place, for each pair (θ̄, θ) of an average and what it is of."""
    for start in range(0, len(pairs), _UPDATED_AT_ONCE):
        chunk = pairs[start : start + _UPDATED_AT_ONCE]
        averages = [average for average, _ in chunk]
        torch._foreach_lerp_(averages, [live.detach().to(average) for average, live in chunk], share)
