"""The grid by measured losses: the shortest path against brute force, and Gaussian data, whose losses are known."""

from itertools import combinations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize

from ldmprobe import Curve, MeasuredGrid, ProbeRecord, RecordStore
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.grids import KarrasGrid, LogSNRGrid, ScheduleGrid
from ldmprobe.diffusion.measured_grid import best_levels, shortest_path
from tests.helpers import refused, sd_scheduler

VARIANCE = np.array([2.0, 0.7, 0.2, 0.03])
ENDS = (-5.364, 7.069)
LOG_SNR = np.arange(-5.25, 7.1, 0.75)


def mmse(log_snr: np.ndarray) -> np.ndarray:
    """Per dimension: v / (1 + γ v)."""
    return (VARIANCE / (1 + np.exp(np.asarray(log_snr))[..., None] * VARIANCE)).mean(-1)


def cost(log_snr: np.ndarray) -> float:
    """½ Σ ∫ (mmse(γ_k) − mmse(γ)) (1 + γ)^−½ dγ of steps from these levels, and from the last to the schedule's end."""
    edges = np.append(log_snr, ENDS[1])
    least = quad(lambda x: float(mmse(np.array(x))) * np.exp(x) / np.sqrt(1 + np.exp(x)), edges[0], edges[-1])[0]
    return float((mmse(log_snr) * np.diff(np.sqrt(1 + np.exp(edges)))).sum() - 0.5 * least)


def test_the_shortest_path_is_that_of_brute_force():
    costs = np.random.default_rng(0).random((9, 9))
    costs[np.tril_indices(9)] = np.inf
    paths = [(0, *inner) for inner in combinations(range(1, 8), 3)]
    lengths = [sum(costs[a, b] for a, b in zip(path, (*path[1:], 8), strict=True)) for path in paths]
    assert tuple(shortest_path(costs, 4)) == paths[int(np.argmin(lengths))]
    assert list(shortest_path(costs, 1)) == [0]


@pytest.mark.parametrize("num_steps", [4, 10])
def test_levels_lose_as_little_as_any_of_gaussian_data(num_steps: int):
    found = best_levels(LOG_SNR, np.exp(LOG_SNR) * mmse(LOG_SNR), ENDS, num_steps)
    assert found[0] == ENDS[0]
    even = np.linspace(*ENDS, num_steps + 1)[1:-1]
    exact = minimize(lambda inner: cost(np.append(ENDS[0], np.sort(inner))), even, method="BFGS")
    assert exact.fun < cost(found) < 1.01 * exact.fun
    assert cost(found) < 0.9 * cost(np.linspace(*ENDS, num_steps + 1)[:-1])


def test_a_grid_is_of_the_last_record_and_loses_less_than_every_fixed_one(tmp_path):
    schedule, store = as_schedule(sd_scheduler()), RecordStore(tmp_path)
    for step, error in ((100, np.ones_like(LOG_SNR)), (200, np.exp(LOG_SNR) * mmse(LOG_SNR))):
        curve = Curve(np.arange(len(LOG_SNR)), LOG_SNR, error)
        store.append(ProbeRecord("denoising", step, curves={"denoising_mse": curve, "denoising_mmse": curve}))
    measured = MeasuredGrid(str(tmp_path))
    assert measured.in_words == f"measured, record {tmp_path}"
    lost = cost(measured.levels(schedule, 10).log_snr.numpy())
    for grid in (LogSNRGrid(), KarrasGrid(), ScheduleGrid("trailing"), ScheduleGrid("leading")):
        assert lost < 0.9 * cost(grid.levels(schedule, 10).log_snr.numpy())
    assert measured.levels(schedule, 250).num_steps == 250


def test_a_grid_of_no_record_says_what_it_is_made_of(tmp_path):
    schedule = as_schedule(sd_scheduler())
    with refused("say of which: --grid-settings record=runs/digits"):
        MeasuredGrid().levels(schedule, 10)
    with refused(f"{tmp_path} has no record of a DenoisingProbe"):
        MeasuredGrid(str(tmp_path)).levels(schedule, 10)
