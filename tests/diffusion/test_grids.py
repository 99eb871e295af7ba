"""Levels between a schedule's timesteps, and the grids made of them, against diffusers' own."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, ShiftGrid
from ldmprobe.diffusion.named import by_name
from ldmprobe.diffusion.prediction import EpsilonPrediction
from ldmprobe.diffusion.schedule import NoiseSchedule
from tests.diffusion.catalog import ZERO_TERMINAL
from tests.helpers import FLOAT64, refused, sd_scheduler

COSINE = DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
EXPLODING = torch.logspace(-2, 1.7, 300, dtype=torch.float64)


def exploding() -> NoiseSchedule:
    return NoiseSchedule(torch.ones(300), EXPLODING, EpsilonPrediction(), EXPLODING.log() / 4, float(EXPLODING[-1]))


each_source = pytest.mark.parametrize(
    "source", [sd_scheduler(), COSINE, sd_scheduler(**ZERO_TERMINAL), FLOW, exploding()]
)


@each_source
def test_a_level_of_the_table_is_its_own_entry_to_the_last_bit(source):
    schedule = as_schedule(source)
    alpha, sigma, told = schedule.level_at(schedule.log_snr)
    assert torch.equal(alpha, schedule.alpha)
    assert torch.equal(sigma, schedule.sigma)
    assert torch.equal(told, schedule.model_time.double())


@pytest.mark.parametrize(
    ("source", "relation", "told_at"),
    [
        (sd_scheduler(), lambda alpha, sigma: alpha**2 + sigma**2, lambda sigma, middle: middle),
        (FLOW, lambda alpha, sigma: alpha + sigma, lambda sigma, middle: 1000 * sigma),
        (exploding(), lambda alpha, sigma: alpha, lambda sigma, middle: sigma.log() / 4),
    ],
)
def test_a_level_between_two_keeps_the_relation_of_its_process(source, relation, told_at):
    schedule = as_schedule(source)
    log_snr = (schedule.log_snr[1:-2] + schedule.log_snr[2:-1]) / 2
    alpha, sigma, told = schedule.level_at(log_snr)
    torch.testing.assert_close(relation(alpha, sigma), torch.ones_like(alpha), **FLOAT64)
    torch.testing.assert_close(2 * (alpha / sigma).log(), log_snr, **FLOAT64)
    middle = (schedule.model_time[1:-2].double() + schedule.model_time[2:-1]) / 2
    torch.testing.assert_close(told, told_at(sigma, middle), **FLOAT64)


@pytest.mark.parametrize("log_snr", [-6.0, 8.0, float("-inf"), float("nan")])
def test_a_level_outside_the_table_is_refused(log_snr: float):
    with refused(r"DDIMScheduler reaches from log-SNR -5\.364 to 7\.069, and a level at"):
        as_schedule(sd_scheduler()).level_at(torch.tensor([0.0, log_snr]))


@pytest.mark.parametrize("num_steps", [5, 20])
@pytest.mark.parametrize(("grid", "setting"), [(KarrasGrid(), "use_karras_sigmas"), (LogSNRGrid(), "use_lu_lambdas")])
def test_grids_are_diffusers_own_but_for_its_rounded_timesteps(grid: Grid, setting: str, num_steps: int):
    theirs = DPMSolverMultistepScheduler.from_config(sd_scheduler().config, **{setting: True})
    theirs.set_timesteps(num_steps)
    ours = grid.levels(as_schedule(sd_scheduler()), num_steps)
    assert ours.num_steps == num_steps
    torch.testing.assert_close((ours.sigma_t / ours.alpha_t).float(), theirs.sigmas[:-1], rtol=1e-5, atol=0)
    assert (float(ours.alpha_s[-1]), float(ours.sigma_s[-1])) == (1, float(theirs.sigmas[-1]))
    assert (ours.timesteps - theirs.timesteps).abs().max() <= 0.51


def test_a_shift_of_3_is_that_of_flow_matching():
    schedule = as_schedule(FlowMatchEulerDiscreteScheduler())
    grid, unshifted = (ShiftGrid(shift).levels(schedule, 8) for shift in (3.0, 1.0))
    lifted = unshifted.log_snr[1:] - grid.log_snr[1:]
    torch.testing.assert_close(lifted, torch.full_like(lifted, 2 * math.log(3)), **FLOAT64)
    even = torch.linspace(1, 0, 9, dtype=torch.float64)[:-1]
    torch.testing.assert_close(grid.sigma_t, 3 * even / (1 + 2 * even), **FLOAT64)
    torch.testing.assert_close(grid.timesteps, 1000 * grid.sigma_t, rtol=1e-3, atol=0)


@each_source
@pytest.mark.parametrize("num_steps", [1, 2, 9, 250])
def test_every_grid_falls_in_noise_joins_its_steps_and_ends_at_the_data(source, num_steps: int):
    schedule = as_schedule(source)
    grids = {name: make() for name, make in by_name(Grid).items() if name != "measured"}  # which is of a run
    for name, grid in {**grids, "edm": KarrasGrid(sigma_min=0.1, sigma_max=10.0), "shift less": ShiftGrid(0.3)}.items():
        levels = grid.levels(schedule, num_steps).joined()
        assert levels.num_steps == num_steps
        assert (levels.log_snr.diff() > 0).all(), name
        assert torch.equal(levels.alpha_s[:-1], levels.alpha_t[1:])
        if name != "schedule":
            assert (float(levels.alpha_s[-1]), float(levels.sigma_s[-1])) == (1, 0)


def test_grids_over_the_log_snr_enter_a_cosine_schedule_where_it_holds_something_of_the_data():
    schedule = as_schedule(COSINE)
    assert float(schedule.log_snr[-1]) < -19
    for grid in (LogSNRGrid(), KarrasGrid()):
        assert float(grid.levels(schedule, 10).log_snr[0]) == pytest.approx(-10)
    assert float(LogSNRGrid(min_log_snr=-15).levels(schedule, 10).log_snr[0]) == pytest.approx(-15)


def test_a_grid_that_enters_an_exploding_process_below_its_end_starts_from_less_noise():
    schedule = exploding()
    assert LogSNRGrid().levels(schedule, 10).prior_std == schedule.prior_std
    grid = KarrasGrid(sigma_max=20.0).levels(schedule, 10)
    assert grid.prior_std == pytest.approx(20.0, rel=1e-2)
    assert LogSNRGrid().levels(as_schedule(COSINE), 10).prior_std == 1


@pytest.mark.parametrize(
    ("grid", "num_steps", "text"),
    [
        (lambda: KarrasGrid(sigma_min=0.002, sigma_max=80.0), 10, r"reaches from log-SNR -5\.364 to 7\.069, and a level"),
        (KarrasGrid, 0, r"num_steps 0; expected at least 1"),
        (LogSNRGrid, 0, r"num_steps 0; expected at least 1"),
        (lambda: KarrasGrid(rho=0.0), 10, r"rho 0\.0; expected a finite number above 0"),
        (lambda: KarrasGrid(sigma_min=2.0, sigma_max=1.0), 10, r"sigma_min 2\.0 and sigma_max 1\.0"),
        (lambda: KarrasGrid(sigma_min=0.0), 10, r"sigma_min 0\.0 and sigma_max None"),
        (lambda: KarrasGrid(sigma_max=0.0), 10, r"sigma_min None and sigma_max 0\.0"),
        (lambda: KarrasGrid(sigma_min=200.0), 10, r"from log-SNR -5\.364 to -10\.6 in steps that do not all lead to"),
        (lambda: ShiftGrid(0.0), 10, r"shift 0\.0; expected a finite number above 0"),
        (lambda: KarrasGrid(min_log_snr=math.nan), 10, r"min_log_snr nan"),
        (lambda: LogSNRGrid(math.nan), 10, r"min_log_snr nan"),
    ],
)  # fmt: skip
def test_levels_that_no_schedule_has_are_refused(grid, num_steps: int, text: str):
    with refused(text):
        grid().levels(as_schedule(sd_scheduler()), num_steps)


@pytest.mark.parametrize(
    ("set_alpha_to_one", "end"), [(True, 0.0), (False, float(as_schedule(sd_scheduler()).sigma[0]))]
)
def test_joined_steps_go_all_the_way_where_the_steps_of_ddim_do_not(set_alpha_to_one: bool, end: float):
    """T // 15 is 66, and 15 trailing timesteps are 66.7 apart: diffusers' DDIM ends at timestep 0 of 1,000."""
    grid = as_schedule(sd_scheduler(set_alpha_to_one=set_alpha_to_one)).native_grid(15, "trailing")
    assert float(grid.alpha_s[0]) != float(grid.alpha_t[1])
    assert float(grid.joined().sigma_s[-1]) == pytest.approx(end, abs=1e-12)
    assert torch.equal(grid.joined().sigma_s[:-1], grid.sigma_t[1:])
