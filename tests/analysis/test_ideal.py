"""The ideal of every sampler against impulse responses of the sampler itself, and against the closed form of DDIM."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ldmprobe.analysis.ideal import ideal_path
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.grids import LogSNRGrid, ScheduleGrid
from ldmprobe.diffusion.named import by_name
from ldmprobe.diffusion.prediction import EpsilonPrediction
from ldmprobe.diffusion.samplers import (
    DDIM,
    Combine,
    DPMSolver,
    Euler,
    EulerAncestral,
    Heun,
    PredictorCorrector,
    Sampler,
    SamplerStep,
    ScaledEpsilon,
    UniPC,
    denoise_at,
)
from ldmprobe.diffusion.schedule import NoiseSchedule, SamplingGrid
from ldmprobe.diffusion.trajectory import sampling_steps
from tests.diffusion.catalog import ZERO_TERMINAL
from tests.helpers import sd_scheduler, told

MEAN = torch.linspace(-1, 1, 9, dtype=torch.float64)
VARIANCE = torch.logspace(-4, 1, 9, dtype=torch.float64)


class TwoStepAncestral(Sampler):
    """A sampler with a second pass, a register of its own and noise, as those to come have them."""

    name = "two-step ancestral"

    def program(self, grid: SamplingGrid) -> list[SamplerStep]:
        steps = []
        for k, (alpha, sigma) in enumerate(zip(grid.alpha_s.tolist(), grid.sigma_s.tolist(), strict=True)):
            first = denoise_at(grid, k)
            operations = [first, Combine("guess", {"x0": 0.9 * alpha, "epsilon": sigma})]
            if k:
                operations.append(Combine("guess", {"guess": 0.7, "before": 0.3}))
            operations.append(Combine("before", {"guess": 1.0, "z": 0.1}))
            second = denoise_at(grid, k)
            operations.append(type(second)(second.alpha, second.sigma, second.model_time, "guess", "x0b", "epsilonb"))
            mixed = {"x0": 0.5 * alpha, "x0b": 0.5 * alpha, "epsilonb": 0.8 * sigma}
            operations.append(Combine("z", mixed, noise=0.6 * sigma))
            steps.append(SamplerStep(tuple(operations)))
        return steps


SAMPLERS = {name: make() for name, make in by_name(Sampler).items() if make.func.__module__.startswith("ldmprobe.")}
SAMPLERS |= {
    sampler.in_words: sampler
    for sampler in (
        TwoStepAncestral(),
        DDIM(eta=0.6),
        EulerAncestral(eta=0.6),
        Heun(s_churn=3.0, s_noise=1.01),
        UniPC(order=3),
        DPMSolver(lower_order_final=False),
        ScaledEpsilon(0.9, DPMSolver()),
        PredictorCorrector(step=0.3, num_corrections=2, predictor=DDIM(eta=1.0)),
    )
}
EXPLODING = torch.logspace(-2, 1.5, 400, dtype=torch.float64)
SCHEDULES = {
    "stable diffusion": sd_scheduler(),
    "zero terminal": sd_scheduler(**ZERO_TERMINAL),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "exploding": NoiseSchedule(torch.ones(400), EXPLODING, EpsilonPrediction(), prior_std=float(EXPLODING[-1])),
}


def exact(schedule: NoiseSchedule, program: list[SamplerStep]):
    """Return the exact denoiser of N(MEAN, VARIANCE), as the network of this schedule answers."""
    levels = {each.model_time: (each.alpha, each.sigma) for step in program for each in step.questions}

    def predict(z, timestep):
        alpha, sigma = levels[timestep]
        v = alpha**2 * VARIANCE + sigma**2
        x0 = MEAN + alpha * VARIANCE / v * (z - alpha * MEAN)
        epsilon = sigma / v * (z - alpha * MEAN)
        return schedule.prediction.target(x0, epsilon, alpha, sigma)

    return predict


def path(schedule, program, z_T, noises=None):
    """Return the latents after each step, (S, ...)."""
    draw = None if noises is None else lambda k: noises[k]
    network = exact(schedule, program)
    return torch.stack([s.z_s for s in sampling_steps(told(network), z_T, program, schedule.prediction, draw)])


@pytest.mark.parametrize("spacing", [ScheduleGrid(), LogSNRGrid()], ids=lambda grid: grid.name)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_superposition_any_sampler_is_affine_and_its_ideal_is_the_sum_of_its_responses(sampler, name, spacing):
    """Samples started at 0, at 1, and with one noise at a time give mean and variance without the recursion."""
    schedule = as_schedule(SCHEDULES[name])
    grid = sampler.levels_on(spacing.levels(schedule, 7))
    program = sampler.program(grid)
    draws = sum(isinstance(o, Combine) and o.noise != 0 for step in program for o in step.operations)
    # Row 0 starts at 0, row 1 at 1; row 2 + j has noise j alone.
    start = torch.zeros(2 + draws, 9, dtype=torch.float64)
    start[1] = 1
    noises = torch.zeros(draws, 2 + draws, 9, dtype=torch.float64)
    for j in range(draws):
        noises[j, 2 + j] = 1
    responses = path(schedule, program, start, noises)
    mean, response = responses[:, 0], responses[:, 1:] - responses[:, :1]
    # Where α_T is 0 some samplers divide by next to nothing, and cancel.
    tolerance = {"rtol": 1e-8, "atol": 1e-10} if name == "zero terminal" else {"rtol": 1e-12, "atol": 1e-12}
    ideal = ideal_path(MEAN, VARIANCE, program, grid)
    torch.testing.assert_close(ideal.mean_s, mean, **tolerance)
    torch.testing.assert_close(ideal.var_s, response.pow(2).sum(1), **tolerance)
    # And the sampler is affine: a random start with random noises is the same sum.
    generator = torch.Generator().manual_seed(0)
    z_T = torch.randn(1, 9, dtype=torch.float64, generator=generator)
    xi = torch.randn(draws, 1, 9, dtype=torch.float64, generator=generator)
    expected = mean + response[:, 0] * z_T
    for j in range(draws):
        expected = expected + response[:, 1 + j] * xi[j]
    torch.testing.assert_close(path(schedule, program, z_T, xi)[:, 0], expected, **tolerance)


@pytest.mark.parametrize("name", ["stable diffusion", "flow"])
def test_eulers_method_is_ddim(name):
    schedule = as_schedule(SCHEDULES[name])
    grid = schedule.native_grid(20)
    z_T = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ddim, euler = (path(schedule, sampler.program(grid), z_T) for sampler in (DDIM(), Euler()))
    torch.testing.assert_close(euler, ddim, rtol=1e-10, atol=1e-12)


def test_a_table_of_ones_own_is_sampled_from_its_prior():
    """Variance exploding, α = 1: DDIM from N(0, σ_T²) composes to √((ℓ + σ_s²)/(ℓ + σ_t²)) as the steps get short."""
    schedule, sigma = SCHEDULES["exploding"], EXPLODING
    grid = schedule.native_grid(400)
    ideal = ideal_path(torch.zeros(9), VARIANCE, DDIM().program(grid), grid, schedule.prior_std)
    assert float(ideal.var_t[0].max()) == pytest.approx(float(sigma[-1]) ** 2)
    assert (grid.sigma_s[-1], grid.alpha_s[-1]) == (0, 1)
    exact_end = VARIANCE * sigma[-1] ** 2 / (VARIANCE + sigma[-1] ** 2)
    torch.testing.assert_close(ideal.var_s[-1][3:], exact_end[3:], rtol=0.05, atol=0)
