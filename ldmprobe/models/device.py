"""Devices: moving to one that may not be there, and running out of its memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ldmprobe.errors import ConfigurationError

# What torch raises as a bare RuntimeError.
_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def move(modules: Iterable[nn.Module], device: str) -> None:
    """Move them to ``device``, such as "cuda", in place.

    Raises:
        ConfigurationError: there is no such device, or it has too little memory.
    """
    try:
        for module in modules:
            module.to(device)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise ConfigurationError(
                f"The model does not fit into the memory of {device!r}; write another device, such as 'cpu'."
            ) from error
        raise ConfigurationError(
            f"There is no device {device!r} here ({str(error).splitlines()[0]}); write 'cpu', or leave it out."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` is an allocation that failed: on a GPU, in torch's CPU allocator, or in Python."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)
