"""Planted faults: is each detected (z ≥ 3 against healthy runs' own spread) and located in the right band of log-SNR?"""

from __future__ import annotations

import argparse
import copy
import json
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from scipy.stats import t as student_t

from ldmprobe.analysis.bands import BAND_WIDTH
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses import StepKL
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from ldmprobe.training.latent_diffusion import stable_diffusion_scheduler
from planted_faults import FAULT_BAND, STARVED, Planted, is_earlier, real_latents, training

AT_PROBE = ("scaled by 1.05", "shifted by 0.05", "frozen")


MEASURED = ("calibration_residual", "denoising_mse", "prediction_gain", "prediction_offset", "step_kl")


def faults(**settings: Any) -> None:
    """Train and probe what has not been yet, and judge all; settings as ``bench_soundness.py faults`` has them."""
    args = argparse.Namespace(**settings)
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
