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
        inside: which levels of the grid lie in it (low ≤ log-SNR < high; the cleanest level of all also at high), (L,).
        share: how much of what each level stands for does, (L,): a level stands for all that is nearer to it than to
            others, as in the trapezoid rule, and one at an edge half for either band. Over all bands they sum to 1.
        name: its edges, as far as the grid reaches, such as "−3…0" and "+6…+7.1".
    """

    low: float
    high: float
    inside: np.ndarray
    share: np.ndarray
    name: str

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of ``values`` (L, …) over the levels, each by its share: (…)."""
        touched = self.share > 0
        total: np.ndarray = np.tensordot(self.share[touched], values[touched], 1)
        return total


def bands_of(log_snr: np.ndarray) -> list[LogSNRBand]:
    """The bands that hold a level of ``log_snr`` (L,), noisy to clean; one of no signal, at −inf, is a band by
    itself.
    """
    if not len(log_snr):
        return []
    number = np.floor(log_snr / BAND_WIDTH)
    if log_snr.min() < log_snr.max() == BAND_WIDTH * number.max():
        number = np.minimum(number, number.max() - 1)
    numbers = np.unique(number)
    inside = numbers[:, None] == number
    lows = numbers * BAND_WIDTH
    names = [range_name(max(low, log_snr.min()), min(low + BAND_WIDTH, log_snr.max())) for low in lows]
    parts = zip(lows.tolist(), inside, _shares(log_snr, lows, inside), names, strict=True)
    return [LogSNRBand(low, low + BAND_WIDTH, here, share, name) for low, here, share, name in parts]


def _shares(log_snr: np.ndarray, lows: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return how much of each level's cell, which ends halfway to its neighbors, lies in the bands that begin at
    ``lows`` (B,): (B, L). A level without a cell, where several are one or there is no signal, is where it is
    ``inside``.
    """
    order = np.argsort(log_snr, kind="stable")
    levels, low = log_snr[order], lows[:, None]
    halfway = (levels[1:] + levels[:-1]) / 2
    left, right = np.append(levels[:1], halfway), np.append(halfway, levels[-1:])
    with np.errstate(invalid="ignore"):
        overlap = np.minimum(right, low + BAND_WIDTH) - np.maximum(left, low)
    overlap = np.nan_to_num(np.clip(overlap, 0.0, None))  # −inf − (−inf) where there is no signal
    found = np.empty_like(overlap)
    found[:, order] = np.where(overlap.sum(0) > 0, overlap, inside[:, order])
    shares: np.ndarray = found / found.sum(0)
    return shares


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
