"""Draws the pictures of docs/TASKS.md: what a network was told, what it makes of it, and the held-out image itself.

    ldmprobe fit --config configs/tasks/base.yaml --config configs/tasks/semantic_map.yaml      # and so on
    python scripts/task_pictures.py runs/tasks --out docs/tasks

One picture for each task of configs/tasks that has a checkpoint in the folder of runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

matplotlib.use("agg")
from matplotlib import pyplot as plt

from ldmprobe.inference import image_grid, sample_images
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.guidance import as_guidance
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model

TASKS = sorted(path.stem for path in (Path(__file__).resolve().parent.parent / "configs" / "tasks").glob("*.yaml"))


def rows_of(model: DiffusionModel, sampling: Sampling) -> dict[str, Tensor] | None:
    """Return images (N, C, H, W) by what they are; None for a model that is told no pictures, as a cascade's base."""
    shown = model.conditioning.shown(torch.arange(sampling.num_samples))
    return shown and {"told": shown.condition, "drawn": sample_images(model, sampling), "real": shown.truth}


def draw(rows: dict[str, Tensor], path: Path) -> None:
    """Write a picture with one row of images for each."""
    number = len(rows["drawn"])
    fig, axes = plt.subplots(len(rows), 1, figsize=(0.75 * number + 0.6, 0.8 * len(rows)), layout="constrained")
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        axis.imshow(image_grid(images.cpu(), number, gap=1), cmap="gray", interpolation="nearest", aspect="equal")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(fig)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder with a run for each task, such as runs/tasks")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--num-samples", type=int, default=10)
    parser.add_argument("--num-steps", type=int, default=25, help="of DDIM")
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    how = {"guidance": as_guidance(args.guidance_scale), "seed": args.seed}
    checkpoints = {task: args.runs / task / "checkpoints" / "last.ckpt" for task in TASKS}
    if not any(path.exists() for path in checkpoints.values()):
        sys.exit(f"There is no run of {', '.join(TASKS)} in {args.runs}; train one first.")
    for task, checkpoint in checkpoints.items():
        if not checkpoint.exists():
            continue
        rows = rows_of(load_model(checkpoint), Sampling(args.num_samples, args.num_steps, **how))
        if rows is not None:
            draw(rows, args.out / f"{task}.png")
            print(args.out / f"{task}.png")
