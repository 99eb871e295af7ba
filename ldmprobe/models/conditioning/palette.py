"""Colors for classes, as different as so many can be."""

from __future__ import annotations

import colorsys

import torch
from torch import Tensor


def palette(number: int) -> Tensor:
    """Return `number` colors (number, 3) in [−1, 1], evenly around the circle of hues."""
    return torch.tensor([colorsys.hsv_to_rgb(k / number, 0.65, 0.85) for k in range(number)]) * 2 - 1
