r"""A grid made for one model: the levels that cost least, by the losses that a run's denoising probe has measured.

What steps from log-SNR λ_k to λ_{k+1} lose by keeping the answer that they start with is

.. math:: \text{cost} = \tfrac12 \sum_k \int_{\gamma_k}^{\gamma_{k+1}}
          \bigl(\text{mmse}(\gamma_k) - \text{mmse}(\gamma)\bigr)\, \sigma\, d\gamma,
          \qquad \gamma = e^{\lambda}, \quad \sigma = (1 + \gamma)^{-1/2},

mmse being the error of x̂_0, MSE_ε / γ. Since an ideal denoiser's answers are a martingale, mmse(γ_k) − mmse(γ) is
E‖x̂_0(γ) − x̂_0(γ_k)‖²: how far the answer moves within the step. Without σ this is the discretization gap of the
likelihood bound, in nats per dimension: with infinitely many steps the bound is ½ ∫ mmse dγ (I-MMSE: Guo, Shamai &
Verdú, 2005; Kong et al., 2023, arXiv:2302.03792), with S of them the sum of ½ mmse(γ_k) (γ_{k+1} − γ_k) (Kingma et al.,
2021, arXiv:2107.00630). Most of that lies at so little noise that few samples show it; an error's effect on a sample
goes with σ² (docs/MEASUREMENT.md, "Where more training pays"). σ lies halfway, and was chosen by the FID of two models:
one would rather have no weight, the other σ² (docs/SAMPLERS.md).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from scipy.integrate import cumulative_trapezoid
from scipy.interpolate import PchipInterpolator

from ldmprobe.diffusion.grids import NOISIEST, Grid, log_snr_range, through
from ldmprobe.diffusion.schedule import NoiseSchedule, SamplingGrid
from ldmprobe.errors import ConfigurationError, check_numbers
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.record_file import Part
from ldmprobe.io.store import RecordStore, read_or_skip

_CANDIDATES, _BETWEEN = 128, 16  # levels that a step may start from, at least; points of an integral between two


class MeasuredGrid(Grid):
    r"""Levels that minimize what S steps cost, by measured losses; exactly, by dynamic programming over candidates.

    The last level is free, and its step goes to the data.

    Args:
        record: run directory with records of a DenoisingProbe; the last one that there is counts.
        min_log_snr: where a schedule that goes on to noisier levels is entered.

    Raises:
        ConfigurationError: when levels are asked for: there is no such record.
    """

    name = "measured"

    def __init__(self, record: str | None = None, min_log_snr: float = NOISIEST) -> None:
        check_numbers("MeasuredGrid", -np.inf, min_log_snr=min_log_snr)
        self.record, self.min_log_snr = record, min_log_snr

    def levels(self, schedule: NoiseSchedule, num_steps: int) -> SamplingGrid:
        check_numbers("Sampling", 1, num_steps=num_steps)
        ends = log_snr_range(schedule, self.min_log_snr)
        chosen = torch.from_numpy(best_levels(*self._measured, ends, num_steps))
        chosen[0] = ends[0]  # which no rounding takes off the schedule
        return through(schedule, chosen)

    @property
    def advice(self) -> str:
        """The levels of ten steps in words, and how to ask for them."""
        log_snr, error = self._measured
        chosen = best_levels(log_snr, error, (float(log_snr[0]), float(log_snr[-1])), 10)
        told = ", ".join(f"{level:.1f}" for level in chosen).replace("-", "−")
        return f"With 10 passes, sample at log-SNR {told}: --grid measured --grid-settings record={self.record}"

    @cached_property
    def _measured(self) -> tuple[np.ndarray, np.ndarray]:
        """The levels that were probed and their errors of ε, noisy to clean."""
        if self.record is None:
            raise ConfigurationError(
                "The measured grid is made of a run's losses; say of which: --grid-settings record=runs/digits, or "
                "`record` in a YAML."
            )
        paths = reversed(RecordStore(self.record).paths("denoising"))
        records = (record for path in paths if (record := read_or_skip(path, Part.NUMBERS)) is not None)
        found = next((record for record in records if "denoising_mmse" in record.curves), None)
        if found is None:
            raise ConfigurationError(
                f"{self.record} has no record of a DenoisingProbe; expected a run directory with `probes/`, probed by "
                "one."
            )
        return least_errors(found)


def least_errors(record: ProbeRecord) -> tuple[np.ndarray, np.ndarray]:
    """Return a denoising record's levels (L,), and the least error of ε that is known there: the network's or that of
    the best linear denoiser, which a young network has not reached at the ends.
    """
    measured, linear = record.curves["denoising_mse"], record.curves["denoising_mmse"]
    error = np.fmin(measured.value, linear.value)
    known = np.isfinite(error) & (error > 0)
    return measured.log_snr[known].astype(np.float64), error[known]


def best_levels(log_snr: np.ndarray, error: np.ndarray, ends: tuple[float, float], num_steps: int) -> np.ndarray:
    """Return the log-SNRs (S,) that steps start from: the first is the noisier end, and what the last arrives at is the
    cleaner one.

    Args:
        log_snr: of the measured levels, (L,), rising.
        error: MSE_ε there, (L,).
    """
    candidates, gap = gaps(log_snr, error, ends, max(_CANDIDATES, 2 * num_steps))
    chosen: np.ndarray = candidates[shortest_path(gap, num_steps)]
    return chosen


def gaps(
    log_snr: np.ndarray, error: np.ndarray, ends: tuple[float, float], intervals: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the candidates λ (M,), evenly spaced from one end to the other, and what a step from each to each costs,
    (M, M), per dimension; infinite where it does not lead to less noise.

    ln mmse is interpolated by monotone cubics (Fritsch & Carlson, 1980). Beyond the measured levels mmse is constant
    towards noise, and MSE_ε towards the data.
    """
    fine = np.linspace(*ends, intervals * _BETWEEN + 1)
    known = np.minimum.accumulate(np.log(error) - log_snr)
    low, high = min(ends[0], log_snr[0]) - 1, max(ends[1], log_snr[-1]) + 1
    at = np.concatenate([[low], log_snr, [high]])
    mmse = np.exp(PchipInterpolator(at, np.concatenate([known[:1], known, known[-1:] - (high - log_snr[-1])]))(fine))
    weight = np.exp(fine) / np.sqrt(1 + np.exp(fine))  # σ dγ/dλ
    kept, lost = cumulative_trapezoid([weight, weight * mmse], fine, initial=0)[:, ::_BETWEEN]
    start = mmse[::_BETWEEN]
    gap = 0.5 * (start[:, None] * (kept[None, :] - kept[:, None]) - (lost[None, :] - lost[:, None]))
    gap[np.tril_indices(len(gap))] = np.inf
    return fine[::_BETWEEN], gap


def shortest_path(cost: np.ndarray, num_steps: int) -> np.ndarray:
    """Return the nodes (S,) that S steps from the first node to the last start from, the sum of whose costs (M, M) is
    the least (Bellman, 1958).
    """
    reached, came_from = np.full(len(cost), np.inf), []
    reached[0] = 0.0
    for _ in range(num_steps):
        ways = reached[:, None] + cost
        came_from.append(ways.argmin(0))
        reached = ways.min(0)
    nodes = [len(cost) - 1]
    for origin in reversed(came_from):
        nodes.append(int(origin[nodes[-1]]))
    return np.array(nodes[:0:-1])
