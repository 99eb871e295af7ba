"""The ideal of our samplers against diffusers' own steps, whose moments are the sum of their impulse responses.

A scheduler is run on S + 2 "samples" of Gaussian data's exact denoiser: one that starts at 0, one at 1, and one for each
noise that is drawn, with that noise alone. Each is affine in what it starts from and draws, so that the first is the
mean and the squares of the others' distances from it add up to the variance.
"""

import sys

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ldmprobe.analysis.ideal import ideal_path
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.grids import KarrasGrid, LogSNRGrid, ScheduleGrid
from ldmprobe.diffusion.samplers import DDIM, DDPM, DPMSolver, Euler, EulerAncestral, Heun, Sampler, UniPC
from ldmprobe.diffusion.schedule import SamplingGrid
from tests.helpers import sd_scheduler

MEAN = torch.linspace(-1, 1, 7, dtype=torch.float64)
VARIANCE = torch.logspace(-3, 1, 7, dtype=torch.float64)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TO_THE_DATA = sd_scheduler(set_alpha_to_one=True, steps_offset=0)


class InDouble:
    """torch, as a scheduler's module sees it: where it casts to float32, in float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def _in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def responses(scheduler, monkeypatch, grid: SamplingGrid, scale: float = 1.0) -> Tensor:
    """Return the latents that ``scheduler`` makes of each impulse, after each of its calls, (calls, 2 + draws, D).

    Args:
        scale: of its latents at the start, where they are z/α.
    """
    module = sys.modules[type(scheduler).__module__]
    number, draws = 2 + 2 * grid.num_steps, [0]

    def drawn(shape, **_: object) -> Tensor:
        noise = torch.zeros(shape)
        noise[2 + draws[0]] = 1
        draws[0] += 1
        return noise

    monkeypatch.setattr(module, "torch", InDouble())
    monkeypatch.setattr(module, "randn_tensor", drawn, raising=False)
    z = torch.zeros(number, 7)
    z[1] = scale
    path = []
    for k, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(z, t)
        alpha, sigma = levels_of(scheduler, k, t)
        epsilon = sigma * (seen - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)
        z = scheduler.step(epsilon, t, z).prev_sample
        path.append(z)
    return torch.stack(path)


def levels_of(scheduler, k: int, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return α and σ of the variance-preserving level that a scheduler's k-th call is at."""
    if not hasattr(scheduler, "sigmas"):
        return scheduler.alphas_cumprod[t] ** 0.5, (1 - scheduler.alphas_cumprod[t]) ** 0.5
    sigma = scheduler.sigmas[k]
    return 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5


def assert_ideal_is(sampler: Sampler, grid: SamplingGrid, latents: Tensor, steps: slice = slice(None)) -> None:
    """Compare mean and variance after each step with the sums of the responses (S, 2 + draws, D)."""
    ideal = ideal_path(MEAN, VARIANCE, sampler.program(grid), grid)
    mean, variance = latents[:, 0], (latents[:, 1:] - latents[:, :1]).pow(2).sum(1)
    torch.testing.assert_close(ideal.var_s[steps], variance[steps], rtol=1e-6, atol=0)
    off = (ideal.mean_s - mean).abs()[steps]
    assert (off <= 1e-6 * (mean.abs() + variance.sqrt())[steps]).all()


def over_sigma(kind: type, num_steps: int, grid: SamplingGrid, repeats: int = 1, **settings: object):
    """Return a scheduler over σ/α on the levels of ``grid``, each but the first given ``repeats`` times."""
    scheduler = kind(**BETAS, **settings)
    scheduler.set_timesteps(num_steps)
    sigma = grid.sigma_t / grid.alpha_t
    scheduler.sigmas = torch.cat([sigma[:1], sigma[1:].repeat_interleave(repeats), torch.zeros(1)])
    told = grid.timesteps.double()
    scheduler.timesteps = torch.cat([told[:1], told[1:].repeat_interleave(repeats)])
    scheduler.set_begin_index(0)
    return scheduler


GRIDS = {"trailing": ScheduleGrid("trailing"), "karras": KarrasGrid(), "log-snr": LogSNRGrid()}
PRESERVING = {
    "2M": (DPMSolver(), lambda n, grid: over_sigma(DPMSolverMultistepScheduler, n, grid)),
    "3M": (DPMSolver(order=3), lambda n, grid: over_sigma(DPMSolverMultistepScheduler, n, grid, solver_order=3)),
    "2M SDE": (
        DPMSolver(sde=True),
        lambda n, grid: over_sigma(DPMSolverMultistepScheduler, n, grid, algorithm_type="sde-dpmsolver++"),
    ),
    "UniPC-2": (UniPC(), lambda n, grid: over_sigma(UniPCMultistepScheduler, n, grid)),
    "UniPC-3": (UniPC(order=3), lambda n, grid: over_sigma(UniPCMultistepScheduler, n, grid, solver_order=3)),
}
EXPLODING = {
    "Euler": (Euler(), lambda n, grid: over_sigma(EulerDiscreteScheduler, n, grid)),
    "ancestral": (EulerAncestral(), lambda n, grid: over_sigma(EulerAncestralDiscreteScheduler, n, grid)),
    "Heun": (Heun(), lambda n, grid: over_sigma(HeunDiscreteScheduler, n, grid, repeats=2)),
}


@pytest.mark.parametrize("num_steps", [5, 10, 20])
@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("name", PRESERVING)
def test_multistep_methods(name: str, spacing: str, num_steps: int, monkeypatch):
    sampler, make = PRESERVING[name]
    grid = sampler.levels_on(GRIDS[spacing].levels(as_schedule(TO_THE_DATA), num_steps))
    assert_ideal_is(sampler, grid, responses(make(num_steps, grid), monkeypatch, grid))


@pytest.mark.parametrize("num_steps", [5, 10, 20])
@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("name", EXPLODING)
def test_methods_over_sigma(name: str, spacing: str, num_steps: int, monkeypatch):
    """Their latents are z/α."""
    sampler, make = EXPLODING[name]
    grid = sampler.levels_on(GRIDS[spacing].levels(as_schedule(TO_THE_DATA), num_steps))
    called = responses(make(num_steps, grid), monkeypatch, grid, 1 / float(grid.alpha_t[0]))
    ends = torch.tensor([step.passes for step in sampler.program(grid)]).cumsum(0) - 1
    assert len(called) == ends[-1] + 1
    assert_ideal_is(sampler, grid, grid.alpha_s[:, None, None] * called[ends])


OVER_TIMESTEPS = {
    "ddim": (DDIM(), DDIMScheduler, {"eta": 0.0}),
    "ddim eta .5": (DDIM(eta=0.5), DDIMScheduler, {"eta": 0.5}),
    "ddim eta 1": (DDIM(eta=1.0), DDIMScheduler, {"eta": 1.0}),
    "ddpm small": (DDPM(), DDPMScheduler, {}),
    "ddpm large": (DDPM(variance="large"), DDPMScheduler, {}),
}


@pytest.mark.parametrize("num_steps", [5, 10, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", OVER_TIMESTEPS)
def test_methods_over_timesteps(name: str, spacing: str, num_steps: int, monkeypatch):
    sampler, kind, settings = OVER_TIMESTEPS[name]
    variance = {"variance_type": f"fixed_{sampler.variance}"} if kind is DDPMScheduler else {}
    scheduler = kind(**BETAS, clip_sample=False, timestep_spacing=spacing, **variance)
    grid = sampler.levels_on(ScheduleGrid(spacing).levels(as_schedule(TO_THE_DATA), num_steps))
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(num_steps)
    step = scheduler.step
    monkeypatch.setattr(scheduler, "step", lambda *given: step(*given, **settings))
    # diffusers' DDPM adds noise to the data itself where the last timestep is not 0.
    steps = slice(-1) if name == "ddpm large" and spacing == "trailing" else slice(None)
    assert_ideal_is(sampler, grid, responses(scheduler, monkeypatch, grid), steps)
