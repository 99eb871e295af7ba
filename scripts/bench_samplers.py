"""What the ideal says of samplers and grids: how far from the data a perfect network ends, in closed form.

    python scripts/bench_samplers.py         (a minute on two cores)

1. KL of the end to the data, nats per dimension, over network passes: sampler × grid, on Stable Diffusion's schedule, of
   the data of `builtin:gaussian`
2. the same of Langevin's dynamics on a variance-exploding process
3. what the ideal costs: 50 steps at D = 16,384, one path of each sampler, and the curves of a probe with their jackknife
4. what sampling costs beyond its bare network passes
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from ldmprobe.analysis.divergence import gaussian_kl
from ldmprobe.analysis.ideal import IdealPath, ideal_curves, ideal_path
from ldmprobe.data.builtin import gaussian_spectrum
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, ScheduleGrid
from ldmprobe.diffusion.prediction import EpsilonPrediction
from ldmprobe.diffusion.samplers import (
    DDIM,
    AnnealedLangevin,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Sampler,
    UniPC,
)
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.sampling import Sampling, sample_trajectory
from ldmprobe.training.latent_diffusion import stable_diffusion_scheduler
from study.training import families_unet

PASSES = (10, 15, 20, 50)
GRIDS = {"trailing timesteps": ScheduleGrid("trailing"), "Karras, ρ = 7": KarrasGrid(), "uniform log-SNR": LogSNRGrid()}
SAMPLERS: dict[str, Sampler] = {
    "DDIM": DDIM(),
    "DDIM, η = 1": DDIM(eta=1.0),
    "Euler–Maruyama": EulerMaruyama(),
    "DPM-Solver++ 2M": DPMSolver(),
    "DPM-Solver++ 3M": DPMSolver(order=3),
    "SDE-DPM-Solver++ 2M": DPMSolver(sde=True),
    "UniPC": UniPC(),
    "Heun": Heun(),
}


def spectrum(size: int) -> Tensor:
    """Return the variances of `builtin:gaussian`, (size²,)."""
    return torch.from_numpy(gaussian_spectrum(size)).double().flatten()


def end_of(sampler: Sampler, grid: Grid, schedule: NoiseSchedule, num_steps: int, variance: Tensor) -> float:
    """Return the mean KL of a perfect network's samples from the data, nats per dimension."""
    levels = sampler.levels_on(grid.levels(schedule, num_steps))
    mean = torch.zeros_like(variance)
    path = ideal_path(mean, variance, sampler.program(levels), levels, levels.prior_std)
    return float(gaussian_kl(path.mean_s[-1], path.var_s[-1], mean, variance).mean())


def steps_for(passes: int, sampler: Sampler) -> int:
    """Return the steps of so many passes; Heun's method takes 2 S − 1, at most one pass less than given."""
    return (passes + 1) // 2 if isinstance(sampler, Heun) else passes


def table() -> None:
    scheduler = stable_diffusion_scheduler()
    schedule = as_schedule(type(scheduler).from_config(scheduler.config, set_alpha_to_one=True))
    variance = spectrum(8)
    print(f"\nKL of the end to the data, nats per dimension; passes {' / '.join(map(str, PASSES))}\n")
    print(f"| | {' | '.join(GRIDS)} |\n|---|{'---|' * len(GRIDS)}")
    for name, sampler in SAMPLERS.items():
        cells = []
        for grid in GRIDS.values():
            ends = (end_of(sampler, grid, schedule, steps_for(passes, sampler), variance) for passes in PASSES)
            cells.append(" / ".join(f"{end:.2g}" if end < 1e3 else "diverges" for end in ends))
        print(f"| {name} | {' | '.join(cells)} |")


def langevin() -> None:
    def exploding(levels: int, sigma_min: float = 0.01, sigma_max: float = 50.0) -> NoiseSchedule:
        sigma = torch.logspace(math.log10(sigma_min), math.log10(sigma_max), levels, dtype=torch.float64)
        return NoiseSchedule(torch.ones(levels), sigma, EpsilonPrediction(), sigma.log() / 4, sigma_max)

    variance = spectrum(8)
    print("\nVariance exploding, σ from 0.01 to 50: KL of the end to the data, nats per dimension\n")
    for name, sampler, levels in (
        ("predictor alone, 1,000 levels", EulerMaruyama(), 1000),
        ("and one correction of step 2 (.16)²", PredictorCorrector(step=2 * 0.16**2), 1000),
        ("annealed Langevin, 232 levels × 5, step .062", AnnealedLangevin(step=0.062), 232),
        ("annealed Langevin, 232 levels × 5, step .5", AnnealedLangevin(), 232),
        ("annealed Langevin, 232 levels × 5, step 1", AnnealedLangevin(step=1.0), 232),
        ("annealed Langevin, 232 levels × 5, step found", AnnealedLangevin(step="auto"), 232),
    ):
        schedule = exploding(levels)

        def loss(sampler: Sampler, schedule: NoiseSchedule = schedule, levels: int = levels) -> float:
            return end_of(sampler, LogSNRGrid(), schedule, levels, variance)

        found = sampler.fitted(loss)
        print(f"{name}: {loss(found):.2g} ({found.in_words})")


def costs() -> None:
    schedule = as_schedule(stable_diffusion_scheduler())
    variance = spectrum(128)
    mean = torch.zeros_like(variance)
    print(f"\nThe ideal of 50 steps at D = {len(variance):,}, seconds, best of 3 ({torch.get_num_threads()} threads)\n")
    for name, sampler in SAMPLERS.items():
        levels = sampler.levels_on(LogSNRGrid().levels(schedule, 50))
        program = sampler.program(levels)
        seconds = _best(lambda: ideal_path(mean, variance, program, levels), 3)  # noqa: B023
        print(f"{name}: {seconds:.3f}")
    latents = variance.sqrt().view(1, 4, 64, 64) * torch.randn(
        256, 4, 64, 64, generator=torch.Generator().manual_seed(0)
    )
    reference = LatentStatistics.fit(latents)
    levels = LogSNRGrid().levels(schedule, 50)

    def curves(path: IdealPath) -> Tensor:
        return path.step_kl().mean(1)

    program, basis = DPMSolver().program(levels), reference.basis
    seconds = _best(lambda: ideal_curves(basis, program, levels, curves), 1)
    print(
        f"the curves of a probe by DPM-Solver++ 2M, with {len(basis.mean_without)} jackknife groups, over "
        f"{len(basis.eigenvalues)} eigenvalues, once for all probes of a run: {seconds:.1f}"
    )


def steps_cost() -> None:
    print("\nSampling ÷ its bare network passes, the U-Net of configs/families, 20 steps of 64 latents, median of 3\n")
    model = DiffusionModel(families_unet().eval(), as_schedule(stable_diffusion_scheduler()), (2, 8, 8))
    spent = [0.0]
    predict = model.predict

    def timed(*given: Tensor) -> Tensor:
        start = time.perf_counter()
        answer = predict(*given)
        spent[0] += time.perf_counter() - start
        return answer

    model.predict = timed  # type: ignore[method-assign]
    for name, sampler in SAMPLERS.items():
        sampling = Sampling(64, 20, sampler, LogSNRGrid())
        levels = sampling.levels(model)
        ratios = []
        for _ in range(3):
            spent[0] = 0.0
            start = time.perf_counter()
            with torch.no_grad():
                list(sample_trajectory(model, sampling, levels, torch.arange(64)))
            ratios.append((time.perf_counter() - start) / spent[0])
        print(f"{name}: {sorted(ratios)[1]:.3f}")


def _best(work: object, repeats: int) -> float:
    assert callable(work)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    table()
    langevin()
    costs()
    steps_cost()
