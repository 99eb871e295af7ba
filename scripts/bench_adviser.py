"""Is a grid made of a run's own losses better than every fixed one? FID at few passes, from the same starting noises.

    python scripts/bench_adviser.py runs/digits/checkpoints/last.ckpt --features builtin:digits --data builtin:digits
        --image-size 32 --out runs/adviser_digits    (twelve minutes of one core)

For DDIM and DPM-Solver++ 2M: the FID of every grid, in features that no training has seen, and by how much the measured
grid's is lower, paired sample by sample, with a 95 % interval by a jackknife over samples. A grid whose levels the
schedule does not have is left out.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from torch import Tensor

from fast_samplers import Numbers, features_of, final_latents, real_features, without_groups
from ldmprobe.analysis.intervals import NORMAL, jackknife
from ldmprobe.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, ScheduleGrid, ShiftGrid
from ldmprobe.diffusion.measured_grid import MeasuredGrid
from ldmprobe.diffusion.samplers import DDIM, DPMSolver, Sampler
from ldmprobe.errors import ConfigurationError
from ldmprobe.features.classifier import FeatureNetwork
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
MEASURED = "measured"


def main(args: argparse.Namespace) -> None:
    model, network = load_model(args.model), FeatureNetwork(args.features)
    grids = FIXED | {MEASURED: MeasuredGrid(str(args.model.parent.parent))}
    distance = partial(frechet_distance, real_features(args, network, model.device))
    lines = []
    for passes in args.passes:
        for name, sampler in SAMPLERS.items():
            found: Numbers = {}
            for called, grid in grids.items():
                sampling = Sampling(args.num_samples, passes, sampler, grid, batch_size=256)
                try:
                    found[called, passes] = without_groups(
                        features_of(model, final_latents(model, sampling), network), distance
                    )
                except ConfigurationError as error:
                    print(f"{called} is left out: {error}", flush=True)
            lines += table(f"{name}, {passes} passes", {called: fid for (called, _), fid in found.items()})
            print("\n".join(lines[-len(found) - 3 :]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "adviser.md").write_text("\n".join(lines), encoding="utf-8")


def table(title: str, found: dict[str, Tensor]) -> list[str]:
    """Return a row of each grid: its FID, and by how much that is above the measured grid's."""
    best, lines = found[MEASURED], ["", f"| {title} | FID | above the measured grid's |", "|---|---|---|"]
    for called, fid in found.items():
        value, error = jackknife(fid[0] - best[0], fid[1:] - best[1:])
        above = "" if called == MEASURED else f"{float(value):+.3f} ± {NORMAL * float(error):.3f}"
        lines.append(f"| {called} | {float(fid[0]):.3f} | {above} |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint in its run's directory, with records of a DenoisingProbe")
    parser.add_argument("--features", required=True, help="builtin:digits, builtin:cifar10, or a folder")
    parser.add_argument("--data", required=True, help="real images, as ImageData's dataset")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--passes", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--num-real", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    try:
        main(parser.parse_args())
    except ConfigurationError as error:
        parser.exit(2, f"bench_adviser: error: {error}\n")
    sys.exit(0)
