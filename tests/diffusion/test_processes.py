"""Noise processes against their authors' formulas, integrated or written down anew, and against each other."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from scipy.integrate import solve_ivp

from ldmprobe import DDIM, VESDE, VPSDE, EDMProcess, LogNormalSigma, NoiseSchedule, Stratified, SubVPSDE
from ldmprobe.analysis.divergence import gaussian_kl
from ldmprobe.analysis.ideal import ideal_path
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.grids import LogSNRGrid
from ldmprobe.diffusion.prediction import KINDS, EpsilonPrediction, SamplePrediction, VPrediction
from ldmprobe.diffusion.processes import process_of
from ldmprobe.diffusion.samplers import DPMSolver
from ldmprobe.diffusion.trajectory import sampling_steps
from ldmprobe.probing.ideals import answering
from tests.helpers import FLOAT32, FLOAT64, refused, sd_scheduler, told

PROCESSES = {
    "VP": VPSDE(),
    "VP, constant β": VPSDE(10.0, 10.0, time_scale=1.0),
    "sub-VP": SubVPSDE(),
    "VE": VESDE(),
    "NCSN": VESDE(num_timesteps=10),
    "EDM": EDMProcess(),
}
TABLES = {
    "flow": as_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "table": as_schedule(sd_scheduler()),
    "coarse table": NoiseSchedule.from_sigmas(torch.logspace(-2, 1, 8)),
}


@pytest.mark.parametrize("kind", [VPSDE, SubVPSDE])
def test_alpha_and_sigma_solve_the_sde_they_are_named_after(kind):
    """dz = −½ β z du + g dw: α' = −½ β α and (σ²)' = −β σ² + g²; sub-VP's g² = β (1 − e^{−2B})."""
    process, (beta_0, beta_1) = kind(), (0.1, 20.0)

    def change(u: float, state: np.ndarray) -> list[float]:
        beta, b = beta_0 + (beta_1 - beta_0) * u, beta_0 * u + (beta_1 - beta_0) / 2 * u**2
        diffusion = beta * (1 - math.exp(-2 * b)) if kind is SubVPSDE else beta
        return [-beta / 2 * state[0], -beta * state[1] + diffusion]

    times = np.array([0.001, 0.01, 0.1, 0.5, 1.0])
    solved = solve_ivp(change, (0, 1), [1.0, 0.0], t_eval=times, rtol=1e-11, atol=1e-17).y
    t = torch.from_numpy(times * 1000).round().long() - 1
    np.testing.assert_allclose(process.alpha[t], solved[0], rtol=1e-8)
    np.testing.assert_allclose(process.sigma[t], np.sqrt(solved[1]), rtol=1e-6)
    np.testing.assert_allclose(process.model_time[t], 999 * times, rtol=1e-6)


def test_sigmas_are_geometric_for_ncsn_and_those_of_the_paper_for_edm():
    torch.testing.assert_close(VESDE(0.01, 1.0, 10).sigma, torch.logspace(-2, 0, 10).double(), rtol=1e-6, atol=0)
    i = torch.arange(1000, dtype=torch.float64)
    paper = (80 ** (1 / 7) + i / 999 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(EDMProcess().sigma, paper.flip(0), **FLOAT64)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_every_level_is_finite_and_falls_and_is_found_again_by_its_log_snr(process):
    assert process.log_snr.isfinite().all()
    assert (process.log_snr.diff() < 0).all()
    between = (process.log_snr[1:] + process.log_snr[:-1]) / 2
    for log_snr in (process.log_snr, between):
        alpha, sigma, told = process.level_at(log_snr)
        torch.testing.assert_close(2 * (alpha.log() - sigma.log()), log_snr, **FLOAT64)
        again = process.log_alpha_at(log_snr), process.told_between(log_snr)
        torch.testing.assert_close(alpha.log(), again[0], **FLOAT64)
        torch.testing.assert_close(told, again[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_native_grid_runs_from_the_noisiest_level_to_the_cleanest_and_on_to_the_data(process):
    grid = process.native_grid(7)
    assert grid.log_snr[[0, -1]].tolist() == pytest.approx(process.log_snr[[-1, 0]].tolist(), abs=1e-9)
    assert (float(grid.alpha_s[-1]), float(grid.sigma_s[-1])) == (1, 0)
    torch.testing.assert_close(grid.sigma_s[:-1], grid.sigma_t[1:], **FLOAT64)
    with refused(f"timestep_spacing is 'trailing'; {process.name} has 'linspace' only"):
        process.native_grid(7, "trailing")


def test_a_process_starts_from_the_noise_it_ends_in():
    assert [process.prior_std for process in PROCESSES.values()] == [1, 1, 1, 50, 50, 80]


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_description_rebuilds_the_process(process):
    again = process_of(process.description)
    assert type(again) is type(process)
    assert again.description == process.description
    assert torch.equal(again.sigma, process.sigma)
    assert torch.equal(again.model_time, process.model_time)


@pytest.mark.parametrize("kind", [SubVPSDE, VESDE, EDMProcess])
def test_v_is_refused_where_variance_is_not_preserved(kind):
    assert VPSDE(prediction=VPrediction()).prediction.name == "v_prediction"
    with refused("only where α² \\+ σ² = 1; .* use ε, x_0, or ε − x_0"):
        kind(prediction=VPrediction())


@pytest.mark.parametrize("schedule", [*PROCESSES.values(), *TABLES.values()], ids=[*PROCESSES, *TABLES])
def test_the_level_of_what_a_network_is_told_is_that_which_tells_it(schedule):
    low, high = (float(end) for end in schedule.log_snr[schedule.log_snr.isfinite()][[-1, 0]])
    log_snr = torch.linspace(low, high, 37, dtype=torch.float64)[1:-1]
    alpha, sigma, told = schedule.level_at(log_snr)
    for same in (schedule, answering(SamplePrediction(), schedule)):
        found = same.level_told(told)
        torch.testing.assert_close(torch.stack(found), torch.stack([alpha, sigma]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VESDE(1.0, 0.5), "VESDE got sigma_min 1.0 and sigma_max 0.5; expected 0 < sigma_min < sigma_max"),
        (lambda: EDMProcess(sigma_min=0), "EDMProcess got sigma_min 0"),
        (lambda: EDMProcess(rho=0.5), "EDMProcess got rho 0.5; expected at least 1"),
        (lambda: VPSDE(beta_0=2, beta_1=1), "VPSDE got beta_0 2 and beta_1 1; expected beta_1 the larger"),
        (lambda: SubVPSDE(time_scale=0), "SubVPSDE got time_scale 0; expected a finite number above 0"),
        (lambda: VESDE(1.0, math.inf), "sigma_min 1.0 and sigma_max inf; .*both finite"),
        (lambda: VESDE(num_timesteps=1), "VESDE got num_timesteps 1; expected at least 2"),
        (lambda: process_of({"process": "Cold", "prediction": "epsilon"}), "noise process Cold"),
    ],
)
def test_processes_that_are_none_are_refused(make, message):
    with refused(message):
        make()


def test_a_vp_network_sampled_as_ve_takes_the_path_of_ddim():
    """z/α of the variance-preserving path is a variance-exploding path with σ/α."""
    vp = as_schedule(sd_scheduler())
    ve = NoiseSchedule(torch.ones(1000), vp.sigma / vp.alpha, EpsilonPrediction(), vp.model_time, prior_std=1.0)

    def network(z, timestep):
        return torch.tanh(1.3 * z + timestep / 1000)

    def scaled(z, timestep):
        return network(z * vp.alpha[int(timestep)], timestep)

    z_T = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = vp.native_grid(20, "trailing").joined()
    z_ve, program = z_T / grid.alpha_t[0], DDIM().program(ve.native_grid(20))
    ours = sampling_steps(told(scaled), z_ve, program, KINDS["epsilon"])
    theirs = sampling_steps(told(network), z_T, DDIM().program(grid), KINDS["epsilon"])
    for ve_step, vp_step, alpha_s in zip(ours, theirs, grid.alpha_s[:-1], strict=False):
        torch.testing.assert_close(ve_step.z_s * alpha_s, vp_step.z_s, **FLOAT32)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_samples_of_a_perfect_network_are_the_data_from_the_process_s_own_prior_alone(process):
    mean, variance = torch.tensor([0.5, -0.5, 0, 0]).double(), torch.tensor([2, 1, 0.3, 0.05]).double()
    grid = LogSNRGrid().levels(process, min(20, process.num_timesteps))

    def distance(prior_std: float) -> float:
        path = ideal_path(mean, variance, DPMSolver().program(grid), grid, prior_std=prior_std)
        return float(gaussian_kl(path.mean_s[-1], path.var_s[-1], mean, variance).mean())

    assert distance(grid.prior_std) < (2e-2 if process.num_timesteps < 20 else 5e-3)
    if process.prior_std > 1:
        assert distance(1.0) > 1


def test_log_normal_sigma_covers_edm_s_table_and_says_what_it_does_not_of_another():
    assert LogNormalSigma().coverage(EDMProcess()) > 0.9999
    assert Stratified(LogNormalSigma()).coverage(VESDE()) == pytest.approx(0.9977, abs=2e-4)
    assert LogNormalSigma().coverage(as_schedule(sd_scheduler())) == pytest.approx(0.974, abs=2e-3)
