r"""The radial spectrum of images or latents: variance of their cosine coefficients (DCT-II) by spatial frequency.

.. math:: S(r) = \text{mean over } (c, u, v) \text{ with } \text{round}\sqrt{u^2 + v^2} = r \text{ of }
          \operatorname{Var}(\text{DCT}_{c,u,v})

Coefficient u makes u/2 cycles across an image, whatever its number of pixels, so that latents and images have their
spectra on one axis. Natural images fall as S ∝ r^−2 or steeper. Latents that fall less have more in their highest
frequencies, which a diffusion model learns last and a decoder amplifies (Skorokhodov et al., 2025, arXiv:2502.14831).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldmprobe.analysis.basis import Rotation

LOWEST, HIGHEST = 2, 16  # frequencies that a slope is fitted over, as far as there are such


def cosine_coefficients(z: Tensor) -> Tensor:
    """Return orthonormal DCT-II coefficients of ``z`` (N, C, H, W), per channel, in the same shape and dtype."""
    return Rotation.cosine(tuple(z.shape[1:]))(z).view(z.shape)


def radial_mean(variance: Tensor) -> np.ndarray:
    """Return the spectrum (R,) at the frequencies r = 0 … R − 1, R = min(H, W), from the variance of each coefficient
    (C, H, W).
    """
    height, width = variance.shape[1:]
    rows, columns = torch.arange(height).double(), torch.arange(width).double()
    radius = (rows[:, None] ** 2 + columns**2).sqrt().round().long().flatten()
    power = variance.double().cpu().mean(0).flatten()
    mean = radius.bincount(power) / radius.bincount()
    return mean[: min(height, width)].numpy()


def spectral_slope(spectrum: np.ndarray, highest: int = HIGHEST) -> float:
    """Return d ln S/d ln r over frequencies 2 … ``highest``, as far as the spectrum goes; NaN of fewer than two."""
    r = np.arange(LOWEST, min(highest + 1, len(spectrum)))
    known = r[spectrum[r] > 0]
    return float(np.polyfit(np.log(known), np.log(spectrum[known]), 1)[0]) if len(known) > 1 else float("nan")
