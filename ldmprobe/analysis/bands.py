"""Bands of log-SNR: neighboring noise levels taken together, and what to call them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BAND_WIDTH = 3.0  # in log-SNR


@dataclass(frozen=True)
class LogSNRBand:
    """A band of log-SNR, and the levels of a grid within it.

    Attributes:
        low, high: the edges, multiples of 3.
        inside: which levels of the grid lie in it (low ≤ log-SNR < high), (L,).
        name: its edges, as far as the grid reaches, such as "−3…0" and "+6…+7.1".
    """

    low: float
    high: float
    inside: np.ndarray
    name: str


def bands_of(log_snr: np.ndarray) -> list[LogSNRBand]:
    """The bands that hold a level of ``log_snr`` (L,), noisy to clean."""
    number = np.floor(log_snr / BAND_WIDTH)
    return [
        LogSNRBand(
            float(n * BAND_WIDTH),
            float((n + 1) * BAND_WIDTH),
            number == n,
            range_name(max(n * BAND_WIDTH, log_snr.min()), min((n + 1) * BAND_WIDTH, log_snr.max())),
        )
        for n in np.unique(number)
    ]


def band_key(low: float) -> str:
    """Return what records call the band that begins at ``low``, such as "logsnr-03"."""
    return f"logsnr{low:+03.0f}"


def range_name(low: float, high: float) -> str:
    """The name of a range of log-SNR, such as "−3…0"; of a single level, such as "+7.1"."""
    ends = [_edge(low), _edge(high)]
    return "…".join(dict.fromkeys(ends))


def runs_of(flagged: np.ndarray, log_snr: np.ndarray) -> list[str]:
    """The names of the unbroken runs of levels (L,) that are ``flagged``; levels between two runs are in neither's
    name.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flagged.astype(int), [0]])))
    return [range_name(log_snr[first], log_snr[past - 1]) for first, past in edges.reshape(-1, 2)]


def _edge(log_snr: float) -> str:
    number = f"{log_snr:+.1f}".removesuffix(".0").replace("-", "−")
    return "0" if number[1:] == "0" else number
