"""Keep a module's state in float32 at least, whatever precision the training module around it is cast to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

Move = Callable[[Tensor], Tensor]
"""The function that ``torch.nn.Module._apply`` is given: it moves or casts a tensor."""


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for a half precision, and any wider dtype itself."""
    return torch.promote_types(dtype, torch.float32)


def in_float32(move: Move) -> Move:
    """Return ``move`` for tensors that are to be in float32 at least, before and after it."""

    def widen(tensor: Tensor) -> Tensor:
        moved = move(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
        dtype = torch.promote_types(tensor.dtype, moved.dtype)
        return tensor.to(moved.device, at_least_float32(dtype) if dtype.is_floating_point else dtype)

    return widen


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which nothing on ``device`` is cast down on its own; an empty one where autocast is not
    known.
    """
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
