"""Every scheduler class of the installed diffusers is read, and then its levels are those that it noises, scales and
starts with itself; or it is refused by name with the reason."""

import inspect
import math
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)

from ldmprobe import DDIM
from ldmprobe.diffusion.diffusers_schedules import READ, REFUSED, as_schedule
from ldmprobe.diffusion.grids import ScheduleGrid
from ldmprobe.diffusion.prediction import KINDS
from ldmprobe.diffusion.trajectory import sampling_steps
from tests.helpers import FLOAT32, FLOAT64, WHOLE_PATH, refused, told

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

ARGUMENTS = {
    "AmusedScheduler": {"mask_token_id": 0},
    "VQDiffusionScheduler": {"num_vec_classes": 4},
    "RFD4ProteinaScheduler": {"sched": {}, "sampling_mode": "", "noise_scale": 1, "gt_mode": ""},
}
CLASSES = {
    name: cls
    for name in dir(diffusers)
    if inspect.isclass(cls := getattr(diffusers, name))
    and issubclass(cls, SchedulerMixin)
    and cls is not SchedulerMixin
}
CLEAN, NOISE = torch.randn(2, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(name: str, **settings):
    try:
        return CLASSES[name](**ARGUMENTS.get(name, {}), **settings)
    except TypeError:  # its arguments are not known here, and it is refused by its name alone
        return CLASSES[name].__new__(CLASSES[name])


def test_refusals_and_readings_name_classes_that_there_are():
    optional = {"CosineDPMSolverMultistepScheduler"}  # a placeholder where torchsde is not installed
    assert (REFUSED.keys() | READ.keys()) - optional <= CLASSES.keys()
    assert not REFUSED.keys() & READ.keys()


def test_the_document_names_every_scheduler_that_is_refused():
    text = (Path(__file__).resolve().parents[2] / "docs" / "PROCESSES.md").read_text()
    assert [name for name in REFUSED if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", CLASSES)
def test_every_scheduler_is_read_or_refused_by_name(name: str):
    if name in REFUSED:
        with refused(f"{name} is not supported: .{{15,}}"):
            as_schedule(made(name))
        return
    schedule = as_schedule(scheduler := made(name))
    grid = schedule.native_grid(10)
    assert grid.num_steps == 10
    if name in READ:
        return
    # The same latents reach the network as in the scheduler's own sampling.
    scheduler.set_timesteps(10)
    own = [t for t in scheduler.timesteps.unique() if float(t).is_integer()]
    assert own
    for t in own[:: max(1, len(own) // 3)]:
        fresh = made(name)
        fresh.set_timesteps(10)
        k = int(t)
        mixed = schedule.alpha[k] * CLEAN + schedule.sigma[k] * NOISE
        if hasattr(fresh, "add_noise") and name != "RePaintScheduler":
            seen = fresh.scale_model_input(fresh.add_noise(CLEAN, NOISE, t.reshape(1)), t)
            torch.testing.assert_close(mixed, seen.double(), rtol=2e-4, atol=2e-5)
        assert float(schedule.model_time[k]) == float(t)
    # z_T: σ-space schedulers start from σ_max or √(σ_max² + 1), which scaled is within α_T² of N(0, I).
    start = scheduler.scale_model_input(NOISE * scheduler.init_noise_sigma, scheduler.timesteps[0])
    assert float(start.std() / NOISE.std()) == pytest.approx(schedule.prior_std, rel=float(schedule.alpha[-1] ** 2))


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_edm_is_told_sigma_in_the_wrapper_that_its_scheduler_is(kind, spacing):
    scheduler = kind(sigma_schedule=spacing, sigma_data=0.5)
    schedule = as_schedule(scheduler)
    assert (schedule.alpha == 1).all()
    assert schedule.prior_std == math.hypot(80, 1)
    assert schedule.prediction.name == "sample"
    assert schedule.network_wrapper == {"class_name": "Preconditioned", "sigma_data": 0.5}
    scheduler.set_timesteps(8)
    grid = schedule.native_grid(8)
    torch.testing.assert_close(grid.sigma_t.float(), scheduler.sigmas[:-1], **FLOAT32)
    torch.testing.assert_close(grid.timesteps.log().float() / 4, scheduler.timesteps, **FLOAT32)
    noised = scheduler.add_noise(CLEAN, NOISE, scheduler.timesteps[3:4])
    torch.testing.assert_close(CLEAN + grid.sigma_t[3] * NOISE, noised.double(), **FLOAT32)
    with refused("prediction_type 'v_prediction'"):
        as_schedule(kind(prediction_type="v_prediction"))


def test_the_path_of_an_edm_scheduler_is_its_own():
    scheduler = EDMEulerScheduler(sigma_data=0.5)
    schedule = as_schedule(scheduler)
    scheduler.set_timesteps(10)

    def answer(z, sigma):  # F, preconditioned as the scheduler does
        inner = torch.tanh(scheduler.precondition_inputs(z, sigma) + math.log(sigma) / 4)
        return scheduler.precondition_outputs(z, inner, sigma)

    z = NOISE.float() * scheduler.init_noise_sigma
    ours = list(sampling_steps(told(answer), z, DDIM().program(schedule.native_grid(10)), KINDS["sample"]))
    for t, step in zip(scheduler.timesteps, ours, strict=True):
        inner = torch.tanh(scheduler.scale_model_input(z, t) + t)
        z = scheduler.step(inner, t, z).prev_sample
        torch.testing.assert_close(step.z_s, z, **WHOLE_PATH)


def test_the_score_sde_has_geometric_levels_and_starts_from_the_largest():
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=200, sigma_max=50.0)
    schedule = as_schedule(scheduler)
    torch.testing.assert_close(schedule.sigma.float(), scheduler.discrete_sigmas, rtol=1e-4, atol=0)
    assert schedule.prior_std == scheduler.init_noise_sigma == 50
    assert schedule.network_wrapper == {"class_name": "ScoreNetwork"}
    assert torch.equal(schedule.model_time, schedule.sigma.float())


@pytest.mark.parametrize(
    "kind", [diffusers.EDMEulerScheduler, diffusers.ScoreSdeVeScheduler, diffusers.FlowMatchEulerDiscreteScheduler]
)
def test_a_schedule_with_one_spacing_tells_it_and_takes_no_other(kind):
    schedule = as_schedule(kind())
    assert ScheduleGrid().provenance(schedule) == {"timestep_spacing": "linspace"}
    ScheduleGrid("linspace").levels(schedule, 5)
    with refused(f"timestep_spacing is 'leading'; {kind.__name__} has 'linspace' only"):
        ScheduleGrid("leading").levels(schedule, 5)


def test_flow_matching_by_heun_or_by_a_solver_is_that_of_euler():
    euler = as_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0))
    solver = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    for scheduler in (FlowMatchHeunDiscreteScheduler(shift=3.0), solver):
        schedule = as_schedule(scheduler)
        torch.testing.assert_close(schedule.sigma, euler.sigma, **FLOAT64)
        torch.testing.assert_close(schedule.model_time, euler.model_time)
        assert schedule.prediction.name == "flow"
        assert torch.equal(schedule.native_grid(10).sigma_t, euler.native_grid(10).sigma_t)
    solver.set_timesteps(10)
    own = solver.sigmas[:-1].double()
    table = torch.from_numpy(np.interp(own, euler.sigma, euler.model_time))
    assert float((table - solver.timesteps).abs().max()) <= 1  # it cuts 1,000 σ down to whole numbers
    assert as_schedule(UniPCMultistepScheduler(use_flow_sigmas=True)).prediction.name == "epsilon"
    with refused("only where α² \\+ σ² = 1"):
        as_schedule(UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="v_prediction"))


@pytest.mark.parametrize("setting", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_settings_of_a_solver_s_own_levels_leave_the_table_as_it_is(setting: str):
    plain, curved = (as_schedule(UniPCMultistepScheduler(**{setting: on})) for on in (False, True))
    assert torch.equal(plain.alpha, curved.alpha)
    assert torch.equal(plain.native_grid(10).timesteps, curved.native_grid(10).timesteps)


@pytest.mark.parametrize("betas", [{}, {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}])
@pytest.mark.parametrize(
    "name", ["EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep", "DDPM", "DDIM"]
)
def test_zero_terminal_snr_is_zero_also_where_diffusers_puts_a_small_number(name: str, betas: dict):
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", **betas}
    schedule = as_schedule(scheduler := made(f"{name}Scheduler", **settings))
    assert float(schedule.alpha[-1]) == 0
    assert float(schedule.sigma[-1]) == 1
    torch.testing.assert_close(schedule.alpha, as_schedule(made("DDIMScheduler", **settings)).alpha, **FLOAT32)
    assert float(scheduler.alphas_cumprod[-1]) == (0 if name in ("DDPM", "DDIM") else 2.0**-24)  # the user's own


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("UniPCMultistepScheduler", {"use_dynamic_shifting": True}, "set `use_dynamic_shifting: false`"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "set `use_dynamic_shifting: false`"),
        ("DPMSolverMultistepScheduler", {"thresholding": True}, "set `thresholding: false`"),
        ("DEISMultistepScheduler", {"prediction_type": "flow_prediction"}, "'flow_prediction'; expected one of eps"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "shift_terminal": 0.1}, "`shift_terminal`"),
    ],
)
def test_settings_that_change_the_table_are_refused_by_name(name: str, settings: dict, message: str):
    with refused(message):
        as_schedule(made(name, **settings))
