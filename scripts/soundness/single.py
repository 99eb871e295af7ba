"""Faults put into a perfect denoiser: does the header of one probe of one run tell of them, and of none where there are
none?"""

from __future__ import annotations

import re

import numpy as np
import torch

from known_denoisers import CLUSTERS_SHAPE, ClusterDenoiser, Clusters
from ldmprobe.analysis.bands import bands_of
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.training.latent_diffusion import stable_diffusion_scheduler
from planted_faults import FAULT_BAND, Planted

SINGLE_FAULTS = (
    "none", "scaled by 1.05", "scaled by 0.95", "shifted by 0.05", "one channel × 1.05", "one channel × 1.10", "time + 20", "time + 60",
    "one cluster × 1.1", "one cluster × 1.3", "blurred", "one channel leaks", "noise added", "one cluster forgotten", "replaced by linear",
)  # fmt: skip


def single(runs: int, healthy: int) -> None:
    """Print what the header says of one probe of one run: a perfect denoiser of clustered data, and the same with a
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
    before = any(float(band.sum(residual.lower * mse)) > 0.01 * float(band.sum(mse)) for band in bands_of(gain.log_snr))
    return told, headline, located, before


def places(text: str) -> list[tuple[float, float]]:
    """The ranges of log-SNR that a header names."""
    number = r"[−+]?\d+(?:\.\d+)?"
    listed = re.findall(rf"log-SNR ((?:{number}(?:…{number})?(?:, | and )?)+)", text)
    ranges = [re.findall(number, each) for names in listed for each in re.split(", | and ", names) if each]
    return [(float(ends[0].replace("−", "-")), float(ends[-1].replace("−", "-"))) for ends in ranges]
