r"""Where more training pays: controllers that turn what a held-out probe measured into a density of timesteps over
log-SNR λ.

A level's *progress* is how much its held-out error falls per training step. With allocation p(λ) and an effect u(λ) of
its error on what is wanted, the gain per step is Σ u·progress, and no shift of draws can improve it where u·progress/p
is the same at all levels; so p ∝ u·progress is what a controller moves towards. Two things are wanted of a diffusion
model, and they have different u:

the likelihood bound
    u = 1: ½ D ∫ MSE_ε dλ nats (Kong et al., 2023, arXiv:2302.03792).
the samples
    u = sigmoid(−λ) = σ². Along the probability flow y = z/α moves by ε_θ dσ̃, σ̃ = σ/α = e^{−λ/2} (Karras et al., 2022,
    arXiv:2206.00364, eq. 4), so that an error δε over dλ puts y off by ½ δε σ̃ dλ; the rest of the flow shrinks that,
    for data of variance 1, by 1/√(1 + σ̃²). What is left in the sample has the square ¼ δε² σ̃²/(1 + σ̃²) dλ² = ¼ δε²
    σ²(λ) dλ².

All arrays have shape (L,), one entry per level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from ldmprobe.errors import ConfigurationError


@dataclass(frozen=True)
class Measured:
    """The findings about the levels.

    Attributes:
        log_snr: λ.
        mse: held-out squared ε-error per dimension.
        progress: its fall per training step; at least 0.
        linear_mmse: the best linear denoiser's error.
    """

    log_snr: np.ndarray
    mse: np.ndarray
    progress: np.ndarray
    linear_mmse: np.ndarray


class Controller(ABC):
    """Says where to train."""

    @abstractmethod
    def density(self, measured: Measured) -> np.ndarray:
        """Density per unit of log-SNR, up to a factor; all 0 for no opinion."""


class HeldOutProgress(Controller):
    """p ∝ (1 − s)·progress/Σ progress + s·σ²·progress/Σ σ²·progress: one part of the draws goes where the bound still
    falls, the other where the samples still get better.

    Args:
        sample_share: s, from 0 (the bound alone) to 1.
        exponent: of progress, below 1 to move more gently than the rule.
    """

    def __init__(self, sample_share: float = 0.75, exponent: float = 1.0) -> None:
        if not (0 <= sample_share <= 1 and 0 < exponent <= 1):
            raise ConfigurationError(
                f"HeldOutProgress got sample_share {sample_share}, exponent {exponent}; expected 0 <= sample_share <= "
                "1, 0 < exponent <= 1."
            )
        self.sample_share, self.exponent = sample_share, exponent

    def density(self, measured: Measured) -> np.ndarray:
        for_bound = measured.progress**self.exponent
        for_samples = (expit(-measured.log_snr) * measured.progress) ** self.exponent
        return (1 - self.sample_share) * _shares(for_bound) + self.sample_share * _shares(for_samples)


def bounded(density: np.ndarray, max_ratio: float) -> np.ndarray:
    """``density`` brought to mean 1 and to [1/max_ratio, max_ratio]; all 1 where it is 0 everywhere or not finite."""
    if not np.isfinite(density).all() or density.sum() <= 0:
        return np.ones_like(density)
    relative: np.ndarray = density / density.mean()
    return relative.clip(1 / max_ratio, max_ratio)


def moved(one: np.ndarray, other: np.ndarray) -> float:
    """Share of the draws that lie elsewhere under ``other`` than under ``one``: the total variation distance of the two
    densities.
    """
    return float(0.5 * np.abs(_shares(one) - _shares(other)).sum())


def _shares(density: np.ndarray) -> np.ndarray:
    total = density.sum()
    return density / total if total > 0 else np.zeros_like(density)
