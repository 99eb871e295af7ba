"""How the six families of ``configs/families`` compare once they are trained: held-out skill by log-SNR, and the FID of
each by a sampler of its own.

    python scripts/families.py runs/families --num-samples 1024

Skill is the last denoising probe's. FID is of the same starting noises, in ``builtin:digits`` features, with a 95 %
interval by a jackknife over samples; distances compare with each other only.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fast_samplers import final_latents, without_groups
from ldmprobe.analysis.intervals import NORMAL, jackknife
from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.grids import Grid, KarrasGrid, ScheduleGrid
from ldmprobe.diffusion.samplers import DDIM, AnnealedLangevin, Euler, Heun, Sampler
from ldmprobe.errors import ConfigurationError
from ldmprobe.features.classifier import FeatureNetwork
from ldmprobe.io.store import RecordStore
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.quality import frechet_distance
from ldmprobe.probing.real_features import RealFeatures
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model

OWN: dict[str, tuple[Sampler, Grid, int]] = {
    "ddpm": (DDIM(), ScheduleGrid("trailing"), 50),
    "subvp": (DDIM(), ScheduleGrid(), 50),
    "ve": (Heun(), KarrasGrid(), 25),
    "edm": (Heun(), KarrasGrid(), 25),
    "flow": (Euler(), ScheduleGrid(), 50),
    "ncsn": (AnnealedLangevin(), ScheduleGrid(), 50),
}
"""The sampler, grid and steps of each family, of 50 passes at most, NCSN's of 251."""
LEVELS = np.arange(-5.0, 7.0, 2.0)


def skill(run: Path) -> str:
    """Return the held-out skill at ``LEVELS``, as cells of a table."""
    curve = RecordStore(run).read("denoising")[-1].curves["denoising_skill"]
    order = np.argsort(curve.log_snr)
    values = np.interp(LEVELS, curve.log_snr[order], curve.value[order], left=np.nan, right=np.nan)
    return " | ".join(f"{value:.3f}" for value in values)


def fid(model: DiffusionModel, sampling: Sampling, network: FeatureNetwork, real: torch.Tensor) -> str:
    """Return the FID of samples with the half-width of its interval."""
    latents = final_latents(model, sampling)
    with evaluating([model.codec, network]):
        features = torch.cat([network(model.codec.decode(part).clamp(-1, 1)) for part in latents.split(256)])
    found = without_groups(features, partial(frechet_distance, real))
    _, error = jackknife(found[0], found[1:])
    return f"{float(found[0]):.3f} ± {NORMAL * float(error):.3f}"


def main(args: argparse.Namespace) -> None:
    network = FeatureNetwork("builtin:digits")
    data = ImageData("builtin:digits", image_size=32)
    data.setup()
    images = (batch["image"] for batch in data.reference_images(args.num_real))
    real = RealFeatures.of(network, images, torch.device("cpu")).features
    print(f"| family | skill at log-SNR {', '.join(f'{level:+g}' for level in LEVELS)} | sampler | passes | FID |")
    for name, (sampler, grid, steps) in OWN.items():
        run = args.runs / name
        sampling = Sampling(args.num_samples, steps, sampler, grid, batch_size=256)
        model = load_model(run / "checkpoints" / "last.ckpt", "cpu")
        passes = sum(step.passes for step in sampler.program(sampling.levels(model)))
        distance = fid(model, sampling, network, real)
        print(f"| {name} | {skill(run)} | {sampler.name} | {passes} | {distance} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the runs, such as runs/families")
    parser.add_argument("--num-samples", type=int, default=2048)
    parser.add_argument("--num-real", type=int, default=4096)
    try:
        main(parser.parse_args())
    except ConfigurationError as error:
        parser.exit(2, f"families: error: {error}\n")
    sys.exit(0)
