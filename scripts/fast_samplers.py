"""What few steps cost: FID and sampler gap over network passes, for six samplers of one trained model.

    python scripts/fast_samplers.py runs/digits/checkpoints/last.ckpt --data builtin:digits --label-column label
        --image-size 32 --features builtin:digits --out runs/fast_samplers

FID is of the same starting noises for every sampler, in features that no training has seen; it is told as a ratio to
that of DDIM in 50 steps, with a 95 % interval by a jackknife over samples. The sampler gap is the closed form's: how far
from real latents a perfect denoiser of Gaussian data would end by the same steps, whatever the network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldmprobe.analysis.intervals import NORMAL, jackknife
from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.grids import Grid, LogSNRGrid, ScheduleGrid
from ldmprobe.diffusion.samplers import DDIM, DPMSolver, Heun, Sampler, UniPC
from ldmprobe.errors import ConfigurationError
from ldmprobe.features.classifier import FeatureNetwork
from ldmprobe.inference import real_latents
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses import MarginalGap
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.quality import frechet_distance, sample_features
from ldmprobe.probing.real_features import RealFeatures
from ldmprobe.probing.reference import Reference
from ldmprobe.probing.sampling import Sampling
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
}
YARDSTICK, PASSES, GROUPS = "DDIM, trailing timesteps", (5, 10, 15, 20, 50), 16


def steps_for(sampler: Sampler, passes: int) -> int:
    """Return the steps that take so many passes, or one less: Heun's method takes two a step, and one in the last."""
    return (passes + 1) // 2 if isinstance(sampler, Heun) else passes


def features_of(model: DiffusionModel, network: torch.nn.Module, sampling: Sampling) -> Tensor:
    """Return the features of the samples, (N, F)."""
    with evaluating([*model.modules, network.to(model.device)]):
        ids = torch.arange(sampling.num_samples)
        return sample_features(model, network, ids, sampling, sampling.levels(model)).cpu()


def distances(real: Tensor, generated: Tensor) -> Tensor:
    """Return FID, and without each group of samples, (1 + GROUPS,)."""
    group = torch.arange(len(generated)) % GROUPS
    parts = [generated, *(generated[group != g] for g in range(GROUPS))]
    return torch.tensor([frechet_distance(real, part) for part in parts], dtype=torch.float64)


def sampler_gap(model: DiffusionModel, reference: Reference, sampling: Sampling) -> float:
    """Return what the sampler alone costs, nats per dimension."""
    few = Sampling(8, sampling.num_steps, sampling.sampler, sampling.grid)
    return probe_sampling(model, reference, few, analyses=[MarginalGap()]).scalars["sampler_gap"]


def main(args: argparse.Namespace) -> None:
    model, network = load_model(args.model), FeatureNetwork(args.features)
    reference, _ = real_latents(model, args.data, args.image_column, args.label_column, args.image_size)
    data = ImageData(args.data, image_column=args.image_column, image_size=args.image_size)
    data.setup()
    images = (batch["image"] for batch in data.reference_images(args.num_real, held_out=False))
    real = RealFeatures.of(network, images, model.device).features
    fid: dict[tuple[str, int], Tensor] = {}
    gap: dict[tuple[str, int], float] = {}
    for name, (sampler, grid) in SAMPLERS.items():
        for passes in PASSES:
            sampling = Sampling(args.num_samples, steps_for(sampler, passes), sampler, grid, batch_size=512)
            fid[name, passes] = distances(real, features_of(model, network, sampling))
            gap[name, passes] = sampler_gap(model, reference, sampling)
            print(f"{name}, {passes} passes: FID {fid[name, passes][0]:.3f}, gap {gap[name, passes]:.2e}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "fast_samplers.md").write_text(table(fid, gap), encoding="utf-8")
    (args.out / "fast_samplers.png").write_bytes(png(figure(chart(fid, gap))))
    print(table(fid, gap))


def ratio(fid: dict[tuple[str, int], Tensor], name: str, passes: int) -> tuple[float, float]:
    """Return FID ÷ that of the yardstick in 50 passes, and the half-width of its 95 % interval."""
    ratios = fid[name, passes] / fid[YARDSTICK, PASSES[-1]]
    value, error = jackknife(ratios[0], ratios[1:])
    return float(value), NORMAL * float(error)


def table(fid: dict[tuple[str, int], Tensor], gap: dict[tuple[str, int], float]) -> str:
    """Return the numbers as Markdown."""
    lines = [
        f"| FID ÷ that of {YARDSTICK}, 50 passes | {' | '.join(map(str, PASSES))} |",
        "|---|" + "---|" * len(PASSES),
    ]
    for name in SAMPLERS:
        cells = ("{:.3f} ± {:.3f}".format(*ratio(fid, name, passes)) for passes in PASSES)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"| sampler gap, nats per dimension | {' | '.join(map(str, PASSES))} |",
        "|---|" + "---|" * len(PASSES),
    ]
    lines += [f"| {name} | {' | '.join(f'{gap[name, passes]:.2g}' for passes in PASSES)} |" for name in SAMPLERS]
    return "\n".join([*lines, "", f"FID of {YARDSTICK}, 50 passes: {float(fid[YARDSTICK, PASSES[-1]][0]):.3f}", ""])


def chart(fid: dict[tuple[str, int], Tensor], gap: dict[tuple[str, int], float]) -> Chart:
    """Draw both over passes."""
    x = np.array(PASSES)
    distance, cost = [], []
    for i, name in enumerate(SAMPLERS):
        value, width = np.array([ratio(fid, name, passes) for passes in PASSES]).T
        distance.append(Line(x, value, class_color(i), name, lower=value - width, upper=value + width, markers=True))
        gaps = np.array([gap[name, passes] for passes in PASSES])
        cost.append(Line(x, gaps, class_color(i), markers=True))
    return Chart(
        [
            Panel(distance, "network passes", "FID ÷ DDIM in 50 steps", "Samples", level=1.0, log=True),
            Panel(cost, "network passes", "nats per dimension", "What the sampler alone costs", log=True),
        ],
        columns=2,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint of LatentDiffusion")
    parser.add_argument("--data", required=True, help="dataset of real images, as ImageData's")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--label-column")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--features", required=True, help="builtin:digits, builtin:cifar10, or a folder")
    parser.add_argument("--num-samples", type=int, default=2048)
    parser.add_argument("--num-real", type=int, default=4096)
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the chart")
    try:
        main(parser.parse_args())
    except ConfigurationError as error:
        parser.exit(2, f"fast_samplers: error: {error}\n")
    sys.exit(0)
