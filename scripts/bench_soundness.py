"""Is what the probes say true? Writes the tables of docs/MEASUREMENT.md.

    python scripts/bench_soundness.py golden
    python scripts/bench_soundness.py estimators                       (five minutes on two cores)
    python scripts/bench_soundness.py optimum                          (three minutes on two cores)
    python scripts/bench_soundness.py perfect --seeds 3                (ten minutes on two cores)
    python scripts/bench_soundness.py faults --data digits --seeds 5 --healthy 8 --out runs/faults
    python scripts/bench_soundness.py faults --data PARQUET_FOLDER --image-column img --out runs/faults
                                                                       (quarter of an hour a data set)
    python scripts/bench_soundness.py single                           (five minutes on two cores)

golden      our sampling path and closed forms against diffusers with the exact denoiser of Gaussian data
estimators  bias and coverage of the KL, over sample numbers, dimensions, truths, spectra and tails
optimum     what the finite number of real latents adds to a perfect denoiser's skill, without the noise of
            held-out draws
perfect     perfect denoisers of Gaussian data, over spectra, dimensions and sizes of the reference: is any accused?
faults      planted faults: is each detected (z ≥ 3 against healthy runs' own spread) and located in the right band
            of log-SNR?
single      faults put into a perfect denoiser: does the header of one probe of one run tell of them, and of none
            where there are none?

The denoisers are in known_denoisers.py, the faults in planted_faults.py; what verdicts make of both is bench_verdict.py.

More than 300 lines: six experiments on the same instruments, whose tables stand in one document.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from scipy.optimize import brentq
from scipy.stats import norm
from scipy.stats import t as student_t
from torch import Tensor

from known_denoisers import CLUSTERS_SHAPE, SHAPES, SPECTRA, ClusterDenoiser, Clusters, perfect_data, perfect_probes
from ldmprobe.analysis.bands import BAND_WIDTH, bands_of
from ldmprobe.analysis.divergence import paired_gaussian_kl
from ldmprobe.analysis.ideal import ideal_path
from ldmprobe.analysis.intervals import jackknife_interval
from ldmprobe.analysis.moments import PairedMoments
from ldmprobe.analysis.spectrum import LinearOptimum, Ridges, gaussian_mmse
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.prediction import KINDS
from ldmprobe.diffusion.samplers import DDIM
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.trajectory import sampling_steps
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses import StepKL
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from ldmprobe.training.latent_diffusion import stable_diffusion_scheduler
from planted_faults import FAULT_BAND, STARVED, Planted, is_earlier, real_latents, training

# --- golden ----------------------------------------------------------------------------------------------------------


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
            last = [
                step.z_s
                for step in sampling_steps(
                    Exact(schedule, grid, mean, variance), z_T, DDIM().program(grid), schedule.prediction
                )
            ][-1]
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


# --- estimators ------------------------------------------------------------------------------------------------------


def estimators(repeats: int) -> None:
    print(
        "| form | spectrum | tails | N | D | true KL | mean estimate | bias | coverage of 95 % | raw reads |\n"
        + "|---" * 10
        + "|"
    )
    for tails in ("Gaussian", "Student t5"):
        for spectrum in ("white", "power law"):
            for n, d in (
                (64, 16),
                (64, 256),
                (64, 16384),
                (256, 256),
                (1024, 256),
                (1024, 4096),
                (4096, 16),
                (4096, 256),
            ):
                for truth in (0.0, 0.1, 1.0, 10.0, 100.0):
                    if tails != "Gaussian" and (spectrum == "white" or truth not in (0.0, 1.0, 10.0) or n * d > 2**18):
                        continue
                    if n * d > 2**18 and truth not in (0.0, 10.0):
                        continue
                    rounds = max(8, min(repeats, 2**25 // (n * d)))
                    estimate_row("paired", spectrum, tails, n, d, truth, rounds)
                    if truth in (0.0, 10.0) and n * d <= 2**18 and tails == "Gaussian":
                        estimate_row("independent", spectrum, tails, n, d, truth, rounds)


def estimate_row(form: str, spectrum: str, tails: str, n: int, d: int, truth: float, rounds: int) -> None:
    generator = torch.Generator().manual_seed(n * 1_000_003 + d * 31 + int(truth * 10))
    scale = torch.ones(d) if spectrum == "white" else torch.arange(1, d + 1).float() ** -0.5
    # The KL is shared evenly over directions: ½(r − 1 − ln r) = truth/D, with the samples of one side r times the
    # other's variance.
    ratio = 1.0 if truth == 0 else brentq(lambda r: 0.5 * (r - 1 - np.log(r)) - truth / d, 1.0, 1e6)
    rho = 0.99
    found, covered, raw = [], [], []
    for _ in range(rounds):
        y = draw(tails, n, d, generator)
        x = draw(tails, n, d, generator)
        if form == "paired":
            x = rho * y + (1 - rho**2) ** 0.5 * x
        x, y = x * scale * ratio**0.5, y * scale
        moments = PairedMoments.from_samples(x, y, torch.arange(n))
        total, left_out = moments.total(), moments.leave_one_out()
        if form == "paired":
            value, replicates = paired_gaussian_kl(total).sum(), paired_gaussian_kl(left_out).sum(-1)
        else:
            value = independent(total).sum()
            replicates = independent(left_out).sum(-1)
        lower, upper = jackknife_interval(value, replicates)
        found.append(float(value))
        covered.append(float(lower) <= truth <= float(upper))
        r = total.var_x / total.var_y
        raw.append(float((0.5 * (r - 1 - r.log() + (total.mean_x - total.mean_y) ** 2 / total.var_y)).sum()))
    error = np.std(found) / rounds**0.5
    bias = f"{np.mean(found) - truth:+.3g} ± {1.96 * error:.1g}"
    print(
        f"| {form} | {spectrum} | {tails} | {n} | {d} | {truth:g} | {np.mean(found):.4g} | {bias} | "
        f"{np.mean(covered):.2f} of {rounds} | {np.mean(raw):.3g} |",
        flush=True,
    )


def independent(m: PairedMoments) -> Tensor:
    """KL(x ‖ y) per direction as of two independent sets of samples, which pairs are not; corrected for their number."""
    inflation = (m.n - 1) / (m.n - 3)
    ratio = m.var_x / m.var_y / inflation
    gap = (m.mean_x - m.mean_y) ** 2 / m.var_y / inflation - (ratio + 1) / m.n
    return 0.5 * (ratio - 1 - (m.var_x / m.var_y).log() + gap)


def draw(tails: str, n: int, d: int, generator: torch.Generator) -> Tensor:
    z = torch.randn(n, d, generator=generator)
    if tails == "Gaussian":
        return z
    chi2 = sum(torch.randn(n, d, generator=generator) ** 2 for _ in range(5))
    return z * (3 / chi2) ** 0.5  # Student t with 5 degrees of freedom, variance 1


# --- perfect denoisers -----------------------------------------------------------------------------------------------


def optimum(seeds: int) -> None:
    """Print what the reference adds to a perfect denoiser's skill: its skill beside the estimated optimum, 1 −
    MMSE/estimate, where beside the true one it is 0."""
    print(
        "| spectrum | D | N/D | mean over seeds (standard error) | root mean square of one | levels whose interval "
        "holds the truth |"
    )
    print("|---" * 6 + "|")
    levels = torch.arange(-5.25, 7.1, BAND_WIDTH / 4, dtype=torch.float64)
    for spectrum in SPECTRA:
        for shape in SHAPES:
            for per_dimension in (2, 4, 16):
                skills, held = [], []
                for seed in range(seeds):
                    directions, variance = perfect_data(spectrum, shape, seed)
                    d = len(variance)
                    generator = torch.Generator().manual_seed(seed)
                    x = torch.randn(per_dimension * d, d, generator=generator, dtype=torch.float64) * variance.sqrt()
                    x = x @ directions.T
                    found = LinearOptimum.of_sample(Ridges.of(x - x.mean(0)), len(x), x.var(0))
                    error, lower, upper = found.at(levels)
                    truth = gaussian_mmse(variance, levels)
                    skills.append((1 - truth / error).numpy())
                    held.append(((lower <= truth) & (truth <= upper)).numpy())
                mean, error = np.mean(skills, 0), np.std(skills, 0) / seeds**0.5
                worst = np.abs(mean).argmax()
                print(
                    f"| {spectrum} | {d} | {per_dimension} | {mean[worst]:+.4f} ({error[worst]:.4f}) "
                    f"| {np.square(skills).mean(0).max() ** 0.5:.4f} | {np.mean(held):.0%} |",
                    flush=True,
                )


def perfect(seeds: int) -> None:
    """A level is accused where the interval of its skill lies below 0. The rows with N/D below 2 have levels at which
    the latents cannot tell the linear optimum: there the interval holds all that is possible. Steps whose ideal the
    reference cannot tell from 0 are left out."""
    print(
        "| spectrum | D | N/D | skill, mean over seeds | levels accused | praised | KL ÷ ideal | gap − ideal | levels "
        "accused |"
    )
    print("|---" * 9 + "|")
    total = np.zeros(3)
    for spectrum in SPECTRA:
        for shape in SHAPES:
            for per_dimension in (0.5, 1, 2, 4, 16):
                skills, ratios, gaps, wrong = [], [], [], []
                for seed in range(seeds):
                    denoising, sampled = perfect_probes(spectrum, shape, per_dimension, seed)
                    skill, gap = denoising.curves["denoising_skill"], sampled.curves["marginal_gap"]
                    ideal, kl = sampled.curves["marginal_gap_ideal"], sampled.curves["step_kl"]
                    skills.append(skill.value)
                    ratios.append(kl.value / sampled.curves["step_kl_ideal"].value)
                    gaps.append(gap.value - ideal.value)
                    accused = gap.lower > ideal.upper
                    wrong.append([(skill.upper < 0).mean(), (skill.lower > 0).mean(), accused.mean()])
                low, middle, praised = np.mean(wrong, 0)
                total += [low, praised, 1]
                mean, ratio, gap_mean = (
                    np.mean(skills, 0),
                    np.ma.masked_invalid(ratios).mean(0),
                    np.ma.masked_invalid(gaps).mean(0),
                )
                print(
                    f"| {spectrum} | {np.prod(shape)} | {per_dimension:g} | {mean.min():+.3f} … {mean.max():+.3f} | "
                    f"{low:.1%} | {middle:.1%} | {ratio.min():.3f} … {ratio.max():.3f} | {np.abs(gap_mean).max():.4f} "
                    f"| {praised:.1%} |",
                    flush=True,
                )
    print(
        f"\nLevels accused in all: by skill {total[0] / total[2]:.1%}, by the marginal gap {total[1] / total[2]:.1%}."
    )


# --- faults ----------------------------------------------------------------------------------------------------------

AT_PROBE = ("scaled by 1.05", "shifted by 0.05", "frozen")
MEASURED = ("calibration_residual", "denoising_mse", "prediction_gain", "prediction_offset", "step_kl")


def faults(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [("healthy", seed) for seed in range(args.healthy)]
    jobs += [(fault, seed) for seed in range(args.seeds) for fault in STARVED]
    work = [(args, fault, seed) for fault, seed in jobs if not path_of(args, fault, seed).exists()]
    with get_context("spawn").Pool(args.processes) as pool:
        for done in pool.imap_unordered(train_and_probe, work):
            print(done, flush=True)
    judge(args)


def path_of(args: argparse.Namespace, fault: str, seed: int) -> Path:
    return args.out / f"{Path(args.data).name}-{fault.replace(' ', '_')}-{seed}.json"


def train_and_probe(job: tuple[argparse.Namespace, str, int]) -> str:
    """One run; its denoising probe (and, of a healthy one, probes with each fault put in afterwards) as JSON."""
    args, fault, seed = job
    torch.set_num_threads(1)
    latents, held_out, reference = real_latents(args.data, args.image_column)
    schedule, shape = as_schedule(stable_diffusion_scheduler()), tuple(latents.shape[1:])
    earlier, losses = None, []
    for step, average, loss in training(latents, seed, args.steps, fault):
        losses.append(loss)
        if is_earlier(step, args.steps):
            earlier = copy.deepcopy(average)
    probes = {fault: Planted(average, "none")}
    if fault == "healthy" and seed < args.seeds and earlier is not None:
        for late in AT_PROBE:
            probes[late] = Planted(average, late, earlier if late == "frozen" else None)
    for name, probed in probes.items():
        model = DiffusionModel(probed, schedule, shape)
        record = probe_denoising(model, held_out, reference, num_draws=1024, batch_size=512)
        sampled = probe_sampling(model, reference, Sampling(256, 25), analyses=[StepKL()])
        found = {"training_loss": float(np.mean(losses[-50:]))}
        for metric in MEASURED:
            curve = (sampled if metric == "step_kl" else record).curves[metric]
            levels = {"log_snr": curve.log_snr.tolist(), "timestep": curve.timestep.tolist()}
            found[metric] = {**levels, "value": curve.value.tolist()}
        path_of(args, name, seed).write_text(json.dumps(found))
    return f"{Path(args.data).name}: {fault}, seed {seed}"


def judge(args: argparse.Namespace) -> None:
    """A run is flagged where its z is at least 3, by each witness; located where the noise level that speaks loudest is
    in the planted band."""
    healthy = [read(args, "healthy", seed) for seed in range(args.healthy)]
    print(
        f"\n| {Path(args.data).name}: fault | runs | detected | located | median z | raw step KL: flagged | located | "
        "training loss: flagged |\n" + "|---" * 8 + "|"
    )
    for fault in ("healthy", *STARVED, *AT_PROBE):
        planted = STARVED.get(fault, FAULT_BAND)
        verdicts = []
        for seed in range(args.healthy if fault == "healthy" else args.seeds):
            # A healthy run is never its own witness, nor is the run whose weights a fault was put into.
            others = [run for k, run in enumerate(healthy) if fault in STARVED or k != seed]
            run = read(args, fault, seed)
            verdicts.append([verdict(run, others, witnesses, planted) for witnesses in (PROBE, STEP_KL, LOSS)])
        z, flagged, located = np.moveaxis(np.array(verdicts, dtype=float), 2, 0)
        if fault == "healthy":
            cells = [
                f"{flagged[:, 0].sum():.0f} flagged",
                "",
                f"{np.median(z[:, 0]):.1f}",
                *(f"{flagged[:, 1].sum():.0f}", ""),
            ]
        else:
            cells = [f"{flagged[:, 0].sum():.0f}", f"{located[:, 0].sum():.0f}", f"{np.median(z[:, 0]):.1f}"]
            cells += [f"{flagged[:, 1].sum():.0f}", f"{located[:, 1].sum():.0f}"]
        name = "none (each against the others)" if fault == "healthy" else fault
        print(f"| {name} | {len(z)} | {' | '.join(cells)} | {flagged[:, 2].sum():.0f} |")


def read(args: argparse.Namespace, fault: str, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path_of(args, fault, seed).read_text())
    return found


# What a witness looks at, on a scale on which healthy runs spread evenly, and whether less of it is a fault too.
PROBE: dict[str, Any] = {
    "calibration_residual": (lambda residual: np.log(np.maximum(residual, 0) + 0.01), False),
    "denoising_mse": (np.log, False),
    "prediction_gain": (lambda gain: gain, True),
    "prediction_offset": (lambda offset: offset, False),
}
STEP_KL: dict[str, Any] = {"step_kl": (np.log, True)}
LOSS: dict[str, Any] = {"training_loss": (np.log, True)}


def verdict(
    run: dict[str, Any], healthy: list[dict[str, Any]], witnesses: dict[str, Any], planted: tuple[int, int]
) -> tuple[float, bool, bool]:
    """(z, flagged, located). Each band of log-SNR of each measure is held against healthy runs by Student's t; z is the
    normal deviate of the smallest p-value, times the number of values looked at (Bonferroni): a healthy run passes 3
    once in 400 times."""
    low, high = planted
    smallest, count, inside = 1.0, 0, False
    for metric, (scale, two_sided) in witnesses.items():
        values, band_is_planted = banded(run, metric, low, high)
        base = np.array([scale(banded(other, metric, low, high)[0]) for other in healthy])
        n = len(base)
        t = (scale(values) - base.mean(0)) / (base.std(0, ddof=1) * (1 + 1 / n) ** 0.5)
        p = 2 * student_t.sf(np.abs(t), n - 1) if two_sided else student_t.sf(t, n - 1)
        count += len(p)
        if p.min() < smallest:
            smallest, inside = float(p.min()), bool(band_is_planted[p.argmin()])
    z = float(norm.isf(min(1.0, smallest * count) / 2))
    return z, z >= 3, z >= 3 and inside


def banded(run: dict[str, Any], metric: str, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a metric per band of log-SNR, and whether timesteps low … high reach into the band."""
    if metric == "training_loss":
        return np.array([run[metric]]), np.array([False])
    value, timestep = np.array(run[metric]["value"]), np.array(run[metric]["timestep"])
    band = np.floor(np.array(run[metric]["log_snr"]) / BAND_WIDTH).astype(int)
    weight = np.array(run["denoising_mse"]["value"]) if metric == "calibration_residual" else np.ones_like(value)
    found = [
        (
            (value * weight)[band == b].sum() / weight[band == b].sum(),
            bool(((low <= timestep) & (timestep < high))[band == b].any()),
        )
        for b in np.unique(band)
    ]
    return np.array([mean for mean, _ in found]), np.array([reached for _, reached in found])


# --- single runs -----------------------------------------------------------------------------------------------------

SINGLE_FAULTS = (
    "none", "scaled by 1.05", "scaled by 0.95", "shifted by 0.05", "one channel × 1.05", "one channel × 1.10", "time + 20", "time + 60",
    "one cluster × 1.1", "one cluster × 1.3", "blurred", "one channel leaks", "noise added", "one cluster forgotten", "replaced by linear",
)  # fmt: skip


def single(runs: int, healthy: int) -> None:
    """Return what the header says of one probe of one run: a perfect denoiser of clustered data, and the same with a
    fault in a band of timesteps.
    """
    print(
        "| fault in t = 200 … 500 | runs | told of | in the headline | all that is named is where it was planted | by "
        "R alone, as before |\n" + "|---" * 6 + "|"
    )
    for fault in SINGLE_FAULTS:
        told = np.array([single_run(fault, seed) for seed in range(healthy if fault == "none" else runs)])
        counts = " | ".join(f"{count:.0f}" for count in told.sum(0))
        print(f"| {fault} | {len(told)} | {counts} |", flush=True)


def single_run(fault: str, seed: int) -> tuple[bool, bool, bool, bool]:
    """Return whether the header tells of a fault; in its headline; names none but planted levels; and whether R in
    bands, as before, would have.
    """
    generator = torch.Generator().manual_seed(seed)
    data = Clusters(10, generator)
    schedule = as_schedule(stable_diffusion_scheduler())
    reference = LatentStatistics.fit(data.draw(4096, generator))
    exact = ClusterDenoiser(data, schedule)
    model = DiffusionModel(Planted(exact, fault, exact.instead(fault)), schedule, CLUSTERS_SHAPE)
    record = probe_denoising(
        model, HeldOut(data.draw(512, generator), {}), reference, num_draws=512, batch_size=512, seed=seed
    )
    summary, remarks = (str(record.provenance[name]) for name in ("summary", "remarks"))
    headline = not summary.startswith("No noise level has a measurable fault")
    told = headline or "Measurable" in remarks
    gain, residual = record.curves["prediction_gain"], record.curves["calibration_residual"]
    assert residual.lower is not None
    planted = gain.log_snr[(gain.timestep >= FAULT_BAND[0]) & (gain.timestep < FAULT_BAND[1])]
    named = places(summary + remarks)
    located = told and all(low <= planted[-1] + 0.05 and high >= planted[0] - 0.05 for low, high in named)
    mse = record.curves["denoising_mse"].value
    before = any(
        float((residual.lower * mse)[band.inside].sum()) > 0.01 * float(mse[band.inside].sum())
        for band in bands_of(gain.log_snr)
    )
    return told, headline, located, before


def places(text: str) -> list[tuple[float, float]]:
    """The ranges of log-SNR that a header names."""
    number = r"[−+]?\d+(?:\.\d+)?"
    listed = re.findall(rf"log-SNR ((?:{number}(?:…{number})?(?:, | and )?)+)", text)
    ranges = [re.findall(number, each) for names in listed for each in re.split(", | and ", names) if each]
    return [(float(ends[0].replace("−", "-")), float(ends[-1].replace("−", "-"))) for ends in ranges]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("golden")
    commands.add_parser("estimators").add_argument("--repeats", type=int, default=200)
    commands.add_parser("optimum").add_argument("--seeds", type=int, default=16)
    commands.add_parser("perfect").add_argument("--seeds", type=int, default=10)
    planted = commands.add_parser("faults")
    planted.add_argument("--data", default="digits", help='"digits", "shapes", or a dataset as ImageData takes it')
    planted.add_argument("--image-column", default="image")
    planted.add_argument("--seeds", type=int, default=5)
    planted.add_argument("--healthy", type=int, default=8)
    planted.add_argument("--steps", type=int, default=600)
    planted.add_argument("--processes", type=int, default=2)
    planted.add_argument("--out", type=Path, default=Path("runs/faults"))
    alone = commands.add_parser("single")
    alone.add_argument("--runs", type=int, default=10, help="of each fault")
    alone.add_argument("--healthy", type=int, default=60)
    args = parser.parse_args()
    if args.command == "golden":
        golden()
    elif args.command == "estimators":
        torch.set_num_threads(1)
        estimators(args.repeats)
    elif args.command == "single":
        torch.set_num_threads(1)
        single(args.runs, args.healthy)
    elif args.command == "optimum":
        torch.set_num_threads(1)
        optimum(args.seeds)
    elif args.command == "perfect":
        torch.set_num_threads(1)
        perfect(args.seeds)
    else:
        faults(args)
    sys.exit(0)
