"""Our sampling path and closed forms against diffusers with the exact denoiser of Gaussian data."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ldmprobe.analysis.ideal import ideal_path
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.prediction import KINDS
from ldmprobe.diffusion.samplers import DDIM
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.trajectory import sampling_steps


def schedulers() -> dict[str, Any]:
    sd = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    return {
        "SD leading": DDIMScheduler(**sd, set_alpha_to_one=False, steps_offset=1),
        "SD trailing": DDIMScheduler(**sd, timestep_spacing="trailing"),
        "SD, v": DDIMScheduler(**sd, prediction_type="v_prediction", timestep_spacing="trailing"),
        "SD, x0": DDIMScheduler(**sd, prediction_type="sample", set_alpha_to_one=False),
        "zero-terminal SNR, v": DDIMScheduler(
            **sd, prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
        ),
        "DDPM linear": DDPMScheduler(clip_sample=False),
        "cosine": DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
        "flow Euler, shift 1": FlowMatchEulerDiscreteScheduler(),
        "flow Euler, shift 3": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def golden() -> None:
    d = 64
    mean = 0.3 * torch.randn(d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = 1 / torch.arange(1, d + 1, dtype=torch.float64) + 0.05
    z_T = torch.randn(16, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    print("| schedule | S | closed form, float64 | float32 | diffusers' own step, float64 |\n|---|---|---|---|---|")
    for name, scheduler in schedulers().items():
        schedule = as_schedule(scheduler)
        for steps in (10, 50, 999):
            grid = schedule.native_grid(steps)
            ideal = ideal_path(mean, variance, DDIM().program(grid), grid)
            deviations = []
            for dtype in (torch.float64, torch.float32):
                worst = 0.0
                exact = Exact(schedule, grid, mean, variance)
                for step in sampling_steps(exact, z_T.to(dtype), DDIM().program(grid), schedule.prediction):
                    expected = ideal.mean_s[step.index] + ideal.var_s[step.index].sqrt() * z_T
                    worst = max(worst, relative(step.z_s, expected))
                deviations.append(worst)
            theirs = diffusers_path(schedule, grid, Exact(schedule, grid, mean, variance), z_T, steps)
            exact = Exact(schedule, grid, mean, variance)
            *_, last = (step.z_s for step in sampling_steps(exact, z_T, DDIM().program(grid), schedule.prediction))
            print(f"| {name} | {steps} | {deviations[0]:.0e} | {deviations[1]:.0e} | {relative(last, theirs):.0e} |")


class Exact:
    """The exact denoiser of N(mean, diag variance), called once a step in the grid's order."""

    def __init__(self, schedule: NoiseSchedule, grid: Any, mean: Tensor, variance: Tensor) -> None:
        self.kind, self.grid, self.mean, self.variance, self.k = schedule.prediction.name, grid, mean, variance, 0

    def __call__(self, z: Tensor, timestep: float) -> Tensor:
        alpha, sigma = self.grid.alpha_t[self.k], self.grid.sigma_t[self.k]
        self.k += 1
        mean, variance = self.mean.to(z.dtype), self.variance.to(z.dtype)
        centered = (z - float(alpha) * mean) / (float(alpha) ** 2 * variance + float(sigma) ** 2)
        x0, epsilon = mean + float(alpha) * variance * centered, float(sigma) * centered
        return KINDS[self.kind].target(x0, epsilon, alpha.to(z.dtype), sigma.to(z.dtype))


def diffusers_path(schedule: NoiseSchedule, grid: Any, exact: Exact, z: Tensor, steps: int) -> Tensor:
    if schedule.prediction.name == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(schedule.scheduler.config)
    else:
        kept = {"clip_sample": False, "timestep_spacing": schedule.scheduler.config.timestep_spacing}
        scheduler = DDIMScheduler.from_config(schedule.scheduler.config, **kept)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        z = scheduler.step(exact(z, float(t)), t, z).prev_sample.double()
    return z


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max() / other.double().abs().max())
