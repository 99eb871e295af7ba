"""NoiseSchedule against diffusers' own tables, and its sampling grids against diffusers' own lists of timesteps."""

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.schedule import NoiseSchedule
from tests.helpers import FLOAT32, FLOAT64, refused, sd_scheduler


def test_tables_of_ones_own_are_those_of_diffusers():
    scheduler = DDIMScheduler()
    expected = as_schedule(scheduler)
    table = NoiseSchedule.from_alpha_bar(scheduler.alphas_cumprod, "v_prediction")
    torch.testing.assert_close(table.log_snr, expected.log_snr, **FLOAT64)
    assert (table.prediction.name, table.prior_std) == ("v_prediction", 1.0)
    sigmas = torch.tensor([80.0, 5.0, 0.1, 0.0])  # as EDM lists them
    edm = NoiseSchedule.from_sigmas(sigmas, "sample", model_time=sigmas.log() / 4)
    torch.testing.assert_close(
        edm.log_snr, -2 * torch.tensor([0.1, 5, 80], dtype=torch.float32).double().log(), **FLOAT64
    )
    torch.testing.assert_close(edm.model_time, torch.tensor([0.1, 5, 80]).log() / 4)
    assert edm.prior_std == 80
    torch.testing.assert_close(NoiseSchedule.from_sigmas(sigmas).model_time.float(), torch.tensor([0.1, 5, 80]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseSchedule.from_alpha_bar(torch.tensor([0.9, 1.2])), r"alpha_bar reaches from 0.9 to 1.2.*cumprod"),
        (lambda: NoiseSchedule.from_sigmas(torch.tensor([-1.0, 1.0])), "sigmas has -1 in it"),
        (lambda: NoiseSchedule.from_sigmas(torch.tensor([1.0, 2.0]), "eps"), "prediction is 'eps'; expected one of epsilon"),
    ],
)  # fmt: skip
def test_tables_that_are_none_are_refused(make, message):
    with refused(message):
        make()


def test_log_snr_is_log_of_alpha_squared_over_sigma_squared():
    schedule = as_schedule(sd_scheduler())
    a = schedule.scheduler.alphas_cumprod.double()
    torch.testing.assert_close(schedule.log_snr, torch.logit(a), **FLOAT64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_add_noise_equals_diffusers(dtype: torch.dtype):
    scheduler = sd_scheduler()
    x0, epsilon = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    t = torch.tensor([0, 1, 500, 998, 999])
    ours = as_schedule(scheduler).add_noise(x0, epsilon, t)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, scheduler.add_noise(x0, epsilon, t), **FLOAT32)


@pytest.mark.parametrize("shape", [(3,), (3, 7), (3, 2, 4, 4)])
def test_levels_broadcast_against_latents_of_any_rank(shape: tuple[int, ...]):
    schedule = as_schedule(sd_scheduler())
    alpha, sigma = schedule.levels(torch.tensor([0, 10, 999]), torch.zeros(shape))
    assert alpha.shape == sigma.shape == (3, *(1,) * (len(shape) - 1))
    torch.testing.assert_close(alpha.flatten().double(), schedule.alpha[[0, 10, 999]], **FLOAT32)


def test_timesteps_at_finds_every_timestep_by_its_own_log_snr_and_clamps_outside():
    schedule = as_schedule(sd_scheduler())
    assert schedule.timesteps_at(schedule.log_snr).tolist() == list(range(1000))
    assert schedule.timesteps_at(torch.tensor([100.0, -100.0])).tolist() == [0, 999]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 7, 50, 333])
def test_ddim_grid_visits_the_timesteps_of_diffusers(spacing: str, num_steps: int):
    scheduler = sd_scheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    grid = as_schedule(sd_scheduler()).native_grid(num_steps, spacing)
    assert grid.num_steps == num_steps
    assert grid.timesteps.tolist() == scheduler.timesteps.tolist()
    torch.testing.assert_close(grid.log_snr, as_schedule(scheduler).log_snr[scheduler.timesteps], **FLOAT64)


def test_ddim_grid_takes_the_default_spacing_of_a_scheduler_of_another_class():
    schedule = as_schedule(DPMSolverMultistepScheduler())  # linspace by default, where DDIM is leading
    assert torch.equal(schedule.native_grid(10).timesteps, schedule.native_grid(10, "linspace").timesteps)


@pytest.mark.parametrize("final_sigmas_type", ["zero", "sigma_min"])
def test_last_step_of_a_scheduler_over_sigma_arrives_where_its_own_does(final_sigmas_type: str):
    scheduler = EulerDiscreteScheduler(final_sigmas_type=final_sigmas_type)
    scheduler.set_timesteps(10)
    grid = as_schedule(scheduler).native_grid(10)
    assert float(grid.sigma_s[-1] / grid.alpha_s[-1]) == pytest.approx(float(scheduler.sigmas[-1]), rel=1e-4)


def test_last_step_of_a_shifted_schedule_arrives_at_its_own_table():
    grid = as_schedule(CogVideoXDDIMScheduler(set_alpha_to_one=False, clip_sample=False)).native_grid(10)
    own = CogVideoXDDIMScheduler(set_alpha_to_one=False).final_alpha_cumprod
    assert float(grid.alpha_s[-1]) ** 2 == pytest.approx(float(own), rel=1e-6)


def test_every_number_of_trailing_steps_stays_on_the_schedule():
    # np.arange(T, 0, -T/S) ends in a stray t = -1 for 62 of the 1000 values of S, 61 being the least.
    schedule = as_schedule(sd_scheduler())
    wrong = []
    for num_steps in [*range(1, 130), 201, 999, 1000]:
        grid = schedule.native_grid(num_steps, "trailing")
        if grid.num_steps != num_steps or int(grid.timesteps.min()) < 0:
            wrong.append(num_steps)
    assert wrong == []


@pytest.mark.parametrize(
    ("scheduler", "clip_range"),
    [
        *[(DDIMScheduler(), 1.0), (DDPMScheduler(), 1.0), (DDIMScheduler(clip_sample_range=3.0), 3.0)],
        *[(sd_scheduler(), None), (DDPMScheduler(clip_sample=False), None)],
        *[(PNDMScheduler(), None), (UniPCMultistepScheduler(), None)],
    ],
)
def test_clip_range_is_that_of_a_scheduler_that_clips(scheduler, clip_range: float | None):
    assert as_schedule(scheduler).native_grid(10).clip_range == clip_range


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_welcome_where_x0_is_predicted(prediction_type: str):
    scheduler = sd_scheduler(
        rescale_betas_zero_snr=True, prediction_type=prediction_type, timestep_spacing="trailing", set_alpha_to_one=True
    )
    grid = as_schedule(scheduler).native_grid(10)
    assert (float(grid.alpha_t[0]), float(grid.sigma_t[0])) == (0, 1)
    assert (grid.alpha_t[1:] > 0).all()


ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    "kind", [DDIMScheduler, DDPMScheduler, PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler]
)
def test_settings_change_what_they_name_and_nothing_else(kind):
    own = as_schedule(kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"))
    spaced = own.with_settings(timestep_spacing="trailing")
    torch.testing.assert_close(spaced.alpha, own.alpha, **FLOAT64)
    assert (spaced.prediction.name, spaced.native_grid(10).clip_range) == ("epsilon", own.native_grid(10).clip_range)
    assert spaced.native_grid(10).timesteps.tolist() == own.native_grid(10, "trailing").timesteps.tolist()

    rescaled = own.with_settings(**ZERO_SNR)
    first, last = own.alpha[0], own.alpha[-1]
    torch.testing.assert_close(rescaled.alpha, (own.alpha - last) * first / (first - last), rtol=1e-5, atol=1e-6)
    assert rescaled.prediction.name == "v_prediction"
    assert float(rescaled.alpha[-1]) == 0


def test_flow_matching_takes_the_settings_of_its_own_scheduler():
    own = as_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0))
    torch.testing.assert_close(
        own.with_settings(shift=5.0).sigma, as_schedule(FlowMatchEulerDiscreteScheduler(shift=5.0)).sigma
    )
    with refused(r"has no setting 'prediction_type'; expected some of .*shift"):
        own.with_settings(prediction_type="epsilon")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rescale_beta": True}, "DDIMScheduler has no setting 'rescale_beta'; expected some of .*, rescale_betas_zero_snr"),
        ({"use_flow_sigmas": True}, "DDIMScheduler has no setting 'use_flow_sigmas'"),
        ({"class_path": "diffusers.DDIMScheduler"}, "DDIMScheduler has no setting 'class_path'"),
        ({"prediction_type": "flow_prediction"}, "'flow_prediction'; expected one of epsilon, sample, v_prediction"),
        ({"rescale_betas_zero_snr": True}, "set `prediction_type: v_prediction`"),
        ({"timestep_spacing": "sideways"}, "sideways"),
        ({"beta_schedule": "sideways"}, "DDPMScheduler cannot have the settings {'beta_schedule': 'sideways'}"),
        ({"beta_start": "much"}, "DDPMScheduler cannot have the settings {'beta_start': 'much'}"),
    ],
)  # fmt: skip
def test_settings_that_no_diffusion_has_are_refused(settings, text):
    with refused(text):
        as_schedule(DDPMScheduler()).with_settings(**settings)


CONTINUOUS = EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
SIGMOID = DDPMScheduler(beta_schedule="sigmoid")
ZERO_SNR_EPSILON = {"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}


@pytest.mark.parametrize(
    ("scheduler", "grid", "message"),
    [
        *[(sd_scheduler(), (n,), rf"num_steps is {n}; expected 1 to 1000") for n in (0, -1, 1001)],
        (sd_scheduler(), (10, "sideways"), "sideways"),
        (sd_scheduler(steps_offset=1), (1000, "leading"), r"steps_offset 1 leave the schedule.*'trailing'"),
        *[(FlowMatchEulerDiscreteScheduler(), (n,), rf"num_steps is {n}; expected 1 to 1000") for n in (0, 1001)],
        (SIGMOID, (10,), "sigmoid is not implemented"),
        (CONTINUOUS, (), "timestep_type: continuous"),
        (sd_scheduler(thresholding=True), (), "set `thresholding: false`"),
        (sd_scheduler(prediction_type="score"), (), "'score'; expected one of epsilon, sample, v_prediction"),
        *[
            (kind(**ZERO_SNR_EPSILON), (), r"zero terminal SNR.*set `prediction_type: v_prediction`")
            for kind in (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler)
        ],
        ("diffusers.DDIMScheduler", (), r"'diffusers.DDIMScheduler', which is none.*class_path: diffusers.DDIM"),
    ],
)
def test_what_gives_no_schedule_or_grid_is_refused_with_the_way_out(scheduler, grid: tuple, message: str):
    with refused(message):
        as_schedule(scheduler).native_grid(*grid)
