"""Noise that belongs to the sample, whatever the batch size or number of ranks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def sample_noise(sample_ids: Iterable[int], shape: tuple[int, ...], seed: int, stream: int = 0) -> Tensor:
    """Return standard normal noise (N, *shape), float32 on the CPU; sample i's depends on (seed, stream, i) alone."""
    noise = [np.random.default_rng((seed, stream, i)).standard_normal(shape, dtype=np.float32) for i in sample_ids]
    return torch.from_numpy(np.stack(noise)) if noise else torch.empty(0, *shape)
