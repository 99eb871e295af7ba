"""What few steps cost: FID, or the samples' gap from real latents, and the sampler's own gap over network passes, for
the samplers of one trained model.

    python scripts/fast_samplers.py runs/digits/checkpoints/last.ckpt --out runs/fast_digits
        --features builtin:digits --data builtin:digits --image-size 32
    python scripts/fast_samplers.py runs/gaussian/checkpoints/last.ckpt --out runs/fast_gaussian

FID is of the same starting noises for every sampler, in features that no training has seen, with a 95 % interval by a
jackknife over samples; without --features it is the KL of the samples from real latents. Both are told as ratios to
DDIM's in 50 steps on the usual timesteps. The sampler gap is the closed form's: how far from real latents a perfect
denoiser of Gaussian data would end by the same steps, whatever the network. Real latents' moments are those in the
run's ``reference.safetensors``, two of the samplers are also tried on levels made of its last denoising probe, and one
on a grid that ends early.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ldmprobe.analysis.basis import LatentBasis
from ldmprobe.analysis.divergence import gaussian_kl
from ldmprobe.analysis.intervals import NORMAL, jackknife
from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, ScheduleGrid
from ldmprobe.diffusion.measured_grid import MeasuredGrid
from ldmprobe.diffusion.samplers import DDIM, DPMSolver, Heun, Sampler, UniPC
from ldmprobe.errors import ConfigurationError
from ldmprobe.features.classifier import FeatureNetwork
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses import MarginalGap
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.quality import frechet_distance
from ldmprobe.probing.real_features import RealFeatures
from ldmprobe.probing.sampling import Sampling, sample_trajectory
from ldmprobe.probing.sampling_probe import probe_sampling
from ldmprobe.tracking.charts.chart import Chart, Line, Panel
from ldmprobe.tracking.charts.static import figure, png
from ldmprobe.tracking.style import class_color
from ldmprobe.training.checkpoint.load import load_model

SAMPLERS: dict[str, tuple[Sampler, Grid]] = {
    "DDIM, trailing timesteps": (DDIM(), ScheduleGrid("trailing")),
    "DDIM": (DDIM(), LogSNRGrid()),
    "DPM-Solver++ 2M": (DPMSolver(), LogSNRGrid()),
    "UniPC": (UniPC(), LogSNRGrid()),
    "Heun": (Heun(), LogSNRGrid()),
    "SDE-DPM++ 2M": (DPMSolver(sde=True), LogSNRGrid()),
    "DPM-Solver++ 2M, measured levels": (DPMSolver(), MeasuredGrid()),
    "UniPC, measured levels": (UniPC(), MeasuredGrid()),
    "2M, Karras to σ/α = .3": (DPMSolver(), KarrasGrid(sigma_min=0.3)),
}
YARDSTICK, OFTEN, GROUPS = "DDIM, trailing timesteps", 50, 16
Numbers = dict[tuple[str, int], Tensor]
"""By sampler and passes: a number of all samples, and without each group of them, (1 + GROUPS,)."""


def steps_for(sampler: Sampler, passes: int) -> int:
    """Return the steps that take so many passes, or one less: Heun's method takes two a step, and one in the last."""
    return (passes + 1) // 2 if isinstance(sampler, Heun) else passes


def without_groups(samples: Tensor, distance: Callable[[Tensor], float]) -> Tensor:
    """Return a distance of samples (N, …), and of those without each group, (1 + GROUPS,).

    Groups are runs of samples: sample i is of class i mod K, and of every sixteenth sample all were of half the classes.
    """
    group = torch.arange(len(samples)) * GROUPS // len(samples)
    parts = [samples, *(samples[group != g] for g in range(GROUPS))]
    return torch.tensor([distance(part) for part in parts], dtype=torch.float64)


def final_latents(model: DiffusionModel, sampling: Sampling) -> Tensor:
    """Return the samples, (N, C, H, W)."""
    grid, ends = sampling.levels(model), []
    with evaluating(model.modules):
        for ids in torch.arange(sampling.num_samples).split(sampling.batch_size):
            for step in sample_trajectory(model, sampling, grid, ids):
                end = step.z_s
            ends.append(end.cpu())
    return torch.cat(ends)


def features_of(model: DiffusionModel, latents: Tensor, network: nn.Module) -> Tensor:
    """Return the features of the images that latents are decoded to, (N, F)."""
    with evaluating([model.codec, network]):
        images = (model.codec.decode(part.to(model.device)).clamp(-1, 1) for part in latents.split(256))
        return torch.cat([network(part).cpu() for part in images])


def gap(latents: Tensor, basis: LatentBasis) -> float:
    """Return KL(samples ‖ real latents) of the moments along the basis's directions, nats per dimension."""
    z, kept = basis.rotate(latents).double(), basis.varies
    return float(gaussian_kl(z.mean(0), z.var(0), basis.mean, basis.variance)[kept].mean())


def real_features(args: argparse.Namespace, network: nn.Module, device: torch.device) -> Tensor:
    """Return the features of real training images, (M, F)."""
    data = ImageData(args.data, image_column=args.image_column, image_size=args.image_size)
    data.setup()
    images = (batch["image"] for batch in data.reference_images(args.num_real, held_out=False))
    return RealFeatures.of(network, images, device).features


def main(args: argparse.Namespace) -> None:
    model = load_model(args.model)
    run = args.model.parent.parent
    reference = LatentStatistics.load(run / "reference.safetensors")
    network = FeatureNetwork(args.features) if args.features else None
    real = real_features(args, network, model.device) if network else None
    found: Numbers = {}
    costs: dict[tuple[str, int], float] = {}
    for name, (sampler, on) in SAMPLERS.items():
        grid = MeasuredGrid(str(run)) if isinstance(on, MeasuredGrid) else on
        for passes in args.passes:
            sampling = Sampling(args.num_samples, steps_for(sampler, passes), sampler, grid, batch_size=512)
            latents = final_latents(model, sampling)
            if network is None or real is None:
                found[name, passes] = without_groups(latents, lambda part: gap(part, reference.basis))
            else:
                features = features_of(model, latents, network)
                found[name, passes] = without_groups(features, partial(frechet_distance, real))
            few = Sampling(8, sampling.num_steps, sampler, grid)
            costs[name, passes] = probe_sampling(model, reference, few, [MarginalGap()]).scalars["sampler_gap"]
            print(f"{name}, {passes} passes: {found[name, passes][0]:.4g}, {costs[name, passes]:.2e}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    what = "gap of the samples" if network is None else "FID"
    (args.out / "fast_samplers.md").write_text(table(found, costs, what), encoding="utf-8")
    drawn = figure(chart(found, costs, what))
    drawn.axes[1].legend(frameon=False, fontsize=7, loc="upper right")  # where no curve is
    (args.out / "fast_samplers.png").write_bytes(png(drawn))
    print(table(found, costs, what))


def passes_in(found: Numbers) -> list[int]:
    """Return the numbers of passes."""
    return sorted({passes for _, passes in found})


def ratio(found: Numbers, name: str, passes: int) -> tuple[float, float]:
    """Return a number ÷ that of the yardstick in 50 passes, and the half-width of its 95 % interval."""
    ratios = found[name, passes] / found[YARDSTICK, OFTEN]
    value, error = jackknife(ratios[0], ratios[1:])
    return float(value), NORMAL * float(error)


def table(found: Numbers, costs: dict[tuple[str, int], float], what: str) -> str:
    """Return the numbers as Markdown."""
    every = passes_in(found)
    head, rule = " | ".join(map(str, every)), "|---|" + "---|" * len(every)
    lines = [f"| {what} ÷ that of {YARDSTICK}, 50 passes | {head} |", rule]
    for name in SAMPLERS:
        cells = ("{:.3f} ± {:.3f}".format(*ratio(found, name, passes)) for passes in every)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| sampler gap, nats per dimension | {head} |", rule]
    lines += [f"| {name} | {' | '.join(f'{costs[name, passes]:.2g}' for passes in every)} |" for name in SAMPLERS]
    return "\n".join([*lines, "", f"{what}, {YARDSTICK}, 50 passes: {float(found[YARDSTICK, OFTEN][0]):.4g}", ""])


def chart(found: Numbers, costs: dict[tuple[str, int], float], what: str) -> Chart:
    """Draw both over passes."""
    every, distance, cost = passes_in(found), [], []
    x = np.array(every)
    for i, name in enumerate(SAMPLERS):
        value, width = np.array([ratio(found, name, passes) for passes in every]).T
        distance.append(Line(x, value, class_color(i), lower=value - width, upper=value + width, markers=True))
        cost.append(Line(x, np.array([costs[name, passes] for passes in every]), class_color(i), name, markers=True))
    return Chart(
        [
            Panel(distance, "network passes", f"{what} ÷ DDIM in 50 steps", "Samples", level=1.0, log=True),
            Panel(cost, "network passes", "nats per dimension", "What the sampler alone costs", log=True),
        ],
        columns=2,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint in its run's directory")
    parser.add_argument("--features", help="builtin:digits, builtin:cifar10, or a folder")
    parser.add_argument("--data", help="real images for FID, as ImageData's dataset")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--passes", type=int, nargs="+", default=[5, 10, 15, 20, 50], help="50 among them")
    parser.add_argument("--num-samples", type=int, default=2048)
    parser.add_argument("--num-real", type=int, default=4096)
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the chart")
    try:
        main(parser.parse_args())
    except ConfigurationError as error:
        parser.exit(2, f"fast_samplers: error: {error}\n")
    sys.exit(0)
