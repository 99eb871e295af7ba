"""Running out of memory: how torch says so, and what can be given back."""

from __future__ import annotations

import torch

# What torch raises as a bare RuntimeError.
_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` is an allocation that failed: on a GPU, in torch's CPU allocator, or in Python."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def free_cached_memory() -> None:
    """Give back the blocks that CUDA's allocator keeps for later, so that smaller ones find room."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
