"""Is what the sampling adviser says worth following? FID at few passes, from the same starting noises.

    python scripts/bench_adviser.py grid runs/digits/checkpoints/last.ckpt --features builtin:digits
        --data builtin:digits --image-size 32 --out runs/adviser_digits    (twelve minutes of one core)
    python scripts/bench_adviser.py guidance runs/digits/checkpoints/last.ckpt --features builtin:digits
        --data builtin:digits --label-column label --image-size 32 --out runs/adviser_digits    (two minutes)

Features are those of a network that no training has seen; differences are paired sample by sample, with a 95 % interval
by a jackknife over samples. ``grid``, for DDIM and DPM-Solver++ 2M: the FID of every grid, and by how much the grid
made of the run's own losses is lower. A grid whose levels the schedule does not have is left out. ``guidance``, for
DDIM: the FID without guidance, and how much guidance adds to it everywhere, within the advised interval, and outside.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from torch import Tensor

from fast_samplers import Numbers, features_of, final_latents, real_features, without_groups
from ldmprobe.analysis.intervals import NORMAL, jackknife
from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, ScheduleGrid, ShiftGrid
from ldmprobe.diffusion.measured_grid import MeasuredGrid
from ldmprobe.diffusion.samplers import DDIM, DPMSolver, Sampler
from ldmprobe.errors import ConfigurationError
from ldmprobe.features.classifier import FeatureNetwork
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.guidance import ClassifierFreeGuidance, Guidance, IntervalGuidance
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.quality import frechet_distance
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model

SAMPLERS: dict[str, Sampler] = {"DDIM": DDIM(), "DPM-Solver++ 2M": DPMSolver()}
FIXED: dict[str, Grid] = {
    "trailing": ScheduleGrid("trailing"),
    "leading": ScheduleGrid("leading"),
    "linspace": ScheduleGrid("linspace"),
    "uniform log-SNR": LogSNRGrid(),
    "Karras, ρ = 7": KarrasGrid(),
    "Karras, ρ = 3": KarrasGrid(rho=3.0),
    "EDM": KarrasGrid(sigma_min=0.002, sigma_max=80.0),
    "flow, shift 1": ShiftGrid(1.0),
    "flow, shift 3": ShiftGrid(3.0),
}
MEASURED, PLAIN = "measured", "no guidance"


class OutsideGuidance(IntervalGuidance):
    """Guidance everywhere but between two noise levels."""

    def at(self, log_snr: float) -> Guidance:
        low, high = self.interval
        return ClassifierFreeGuidance() if low <= log_snr <= high else self.guidance.at(log_snr)


def grids(args: argparse.Namespace) -> list[str]:
    """Return a table of each sampler and number of passes."""
    model, network = load_model(args.model), FeatureNetwork(args.features)
    every = FIXED | {MEASURED: MeasuredGrid(str(args.model.parent.parent))}
    distance = partial(frechet_distance, real_features(args, network, model.device))
    lines = []
    for passes in args.passes:
        for name, sampler in SAMPLERS.items():
            found: Numbers = {}
            for called, grid in every.items():
                sampling = Sampling(args.num_samples, passes, sampler, grid, batch_size=256)
                try:
                    found[called, passes] = without_groups(
                        features_of(model, final_latents(model, sampling), network), distance
                    )
                except ConfigurationError as error:
                    print(f"{called} is left out: {error}", flush=True)
            lines += table(f"{name}, {passes} passes", {called: fid for (called, _), fid in found.items()}, MEASURED)
            print("\n".join(lines[-len(found) - 3 :]), flush=True)
    return lines


def guidances(args: argparse.Namespace) -> list[str]:
    """Return what the condition tells, and a table of each number of passes."""
    model, network = load_model(args.model), FeatureNetwork(args.features)
    found = advised(args, model)
    if "guidance_interval/low" not in found:
        raise ConfigurationError(f"The condition of {args.model} tells nothing: there is no interval to try.")
    interval = found["guidance_interval/low"], found["guidance_interval/high"]
    told, width = (found[f"class_information_nats{end}"] for end in ("", "_half_width"))
    lines = [f"{told:.2f} ± {width:.2f} nats told; advised: log-SNR {interval[0]:.1f} to {interval[1]:.1f}"]
    distance = partial(frechet_distance, real_features(args, network, model.device))
    for scale in args.scales:
        tried: dict[str, Guidance] = {
            PLAIN: ClassifierFreeGuidance(),
            "everywhere": ClassifierFreeGuidance(scale),
            "in the advised interval": IntervalGuidance(scale, *interval),
            "outside of it": OutsideGuidance(scale, *interval),
        }
        for passes in args.passes:
            fids: dict[str, Tensor] = {}
            for called, guidance in tried.items():
                sampling = Sampling.of(args.num_samples, passes, None, None, guidance, 256, 0)
                fids[called] = without_groups(features_of(model, final_latents(model, sampling), network), distance)
            lines += table(f"guidance {scale:g}, {passes} passes", fids, PLAIN)
            lines += table(f"guidance {scale:g}, {passes} passes", fids, "in the advised interval")
    print("\n".join(lines), flush=True)
    return lines


def advised(args: argparse.Namespace, model: DiffusionModel) -> dict[str, float]:
    """Return the scalars of a denoising probe."""
    data = ImageData(
        args.data, image_column=args.image_column, label_column=args.label_column, image_size=args.image_size
    )
    data.setup()
    with evaluating(model.modules):
        held_out = HeldOut.encode(model.codec, model.conditioning, data.reference_batches(512, held_out=True))
    reference = LatentStatistics.load(args.model.parent.parent / "reference.safetensors")
    return probe_denoising(model, held_out, reference, args.num_draws).scalars


def table(title: str, found: dict[str, Tensor], yardstick: str) -> list[str]:
    """Return a row of each: its FID, and by how much that is above the yardstick's."""
    best, lines = found[yardstick], ["", f"| {title} | FID | above that of {yardstick} |", "|---|---|---|"]
    for called, fid in found.items():
        value, error = jackknife(fid[0] - best[0], fid[1:] - best[1:])
        above = "" if called == yardstick else f"{float(value):+.3f} ± {NORMAL * float(error):.3f}"
        lines.append(f"| {called} | {float(fid[0]):.3f} | {above} |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, passes, samples in (("grid", [5, 10, 20], 1000), ("guidance", [20], 600)):
        command = commands.add_parser(name)
        command.add_argument(
            "model", type=Path, help="checkpoint in its run's directory, with a DenoisingProbe's files"
        )
        command.add_argument("--features", required=True, help="builtin:digits, builtin:cifar10, or a folder")
        command.add_argument("--data", required=True, help="real images, as ImageData's dataset")
        command.add_argument("--image-column", default="image")
        command.add_argument("--image-size", type=int)
        command.add_argument("--passes", type=int, nargs="+", default=passes)
        command.add_argument("--num-samples", type=int, default=samples)
        command.add_argument("--num-real", type=int, default=2000)
        command.add_argument("--out", type=Path, required=True, help="folder for the table")
    command.add_argument("--label-column")
    command.add_argument("--scales", type=float, nargs="+", default=[2.0])
    command.add_argument("--num-draws", type=int, default=512)
    args = parser.parse_args()
    try:
        lines = (grids if args.command == "grid" else guidances)(args)
    except ConfigurationError as error:
        parser.exit(2, f"bench_adviser: error: {error}\n")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"adviser_{args.command}.md").write_text("\n".join(lines), encoding="utf-8")
    sys.exit(0)
