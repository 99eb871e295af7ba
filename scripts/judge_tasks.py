"""Judges what a model of configs/tasks makes of its conditions, on builtin:shapes; real images set the scale.

    python scripts/judge_tasks.py inpainting runs/tasks/inpainting/checkpoints/last.ckpt

map              mean IoU of the colors in a sample (each pixel's nearest color) with the map that was asked for
inpainting       error of known pixels before they are pasted; the jump across the edge of the hole, as a share of real images'; shape
                 and color right, as `judge_shapes.py` reads them, where at least 30 % of the shape are visible
superresolution  PSNR of the sample made small again against what was asked for; error against bicubic interpolation's; shift of color
sketch           IoU of the outline of what is drawn with the outline that was asked for, a pixel to either side being right, too
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from judge_shapes import train_classifier
from torch import Tensor

from ldmprobe.data.shapes import COLORS, GROUND
from ldmprobe.inference import sample_images
from ldmprobe.models.corruption import downsampled, from_eight_bits, outlines
from ldmprobe.models.guidance import as_guidance
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model

Rows = dict[str, Tensor]
_VISIBLE = 0.3  # share of a shape that has to be seen for its color and shape to be known


def segmented(images: Tensor) -> Tensor:
    """Return the number of each pixel's nearest color, (N, H, W): 0 the ground, from 1 on those of COLORS."""
    palette = torch.tensor([GROUND, *COLORS.values()]) / 127.5 - 1
    return (images[:, None] - palette[None, :, :, None, None]).square().sum(2).argmin(1)


def judge_map(samples: Tensor, truth: Tensor, asked: Rows) -> dict[str, float]:
    maps = asked["map"][:, 0].long()

    def mean_iou(images: Tensor) -> float:
        found, ious = segmented(images), []
        for own, wanted in zip(found, maps, strict=True):
            for k in wanted.unique().tolist():
                ious.append(float(((own == k) & (wanted == k)).sum() / ((own == k) | (wanted == k)).sum()))
        return sum(ious) / len(ious)

    return {"mean IoU with the map": mean_iou(samples), "of real images": mean_iou(truth)}


def judge_inpainting(samples: Tensor, truth: Tensor, asked: Rows) -> dict[str, float]:
    hidden = asked["mask"].bool()
    known = (~hidden).expand_as(truth)
    read = train_classifier(truth.shape[-1])
    shape = (segmented(truth) > 0)[:, None]
    visible = (shape & ~hidden).flatten(1).sum(1) >= _VISIBLE * shape.flatten(1).sum(1)
    right = (read(samples) == read(truth)).all(1)
    return {
        "RMSE of known pixels, of [0, 1]": float((samples - truth)[known].square().mean().sqrt() / 2),
        "jump across the edge, of real images'": float(_jump(samples, hidden) / _jump(truth, hidden)),
        f"shape and color right, of {int(visible.sum())}": float(right[visible].float().mean()),
    }


def _jump(images: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean difference of neighbors of which one is hidden."""
    jumps = []
    for axis in (2, 3):
        edge = hidden.narrow(axis, 1, hidden.shape[axis] - 1) != hidden.narrow(axis, 0, hidden.shape[axis] - 1)
        jumps.append(images.diff(dim=axis).abs()[edge.expand_as(images.diff(dim=axis))])
    return torch.cat(jumps).mean()


def judge_superresolution(samples: Tensor, truth: Tensor, asked: Rows) -> dict[str, float]:
    low = from_eight_bits(asked["low"])
    factor = truth.shape[-1] // low.shape[-1]
    again = downsampled(samples, factor)
    bicubic = F.interpolate(low, size=truth.shape[2:], mode="bicubic").clamp(-1, 1)
    mse = ((again - low) / 2).square().mean()
    return {
        "PSNR of the sample made small, dB": float(-10 * mse.log10()),
        "error, of bicubic's": float(
            (samples - truth).square().mean().sqrt() / (bicubic - truth).square().mean().sqrt()
        ),
        "largest shift of a color, of 255": float((again - low).mean((0, 2, 3)).abs().max() * 127.5),
    }


def judge_sketch(samples: Tensor, truth: Tensor, asked: Rows) -> dict[str, float]:
    wanted = asked["sketch"].bool()

    def iou(images: Tensor) -> float:
        drawn = outlines((segmented(images) > 0).long()).bool()
        near_wanted, near_drawn = (F.max_pool2d(each.float(), 3, 1, 1).bool() for each in (wanted, drawn))
        both = (drawn & near_wanted).sum() + (wanted & near_drawn).sum()
        return float(both / (drawn.sum() + wanted.sum()))

    return {"outlines that agree": iou(samples), "of real images": iou(truth)}


JUDGES: dict[str, Callable[[Tensor, Tensor, Rows], dict[str, float]]] = {
    "map": judge_map,
    "inpainting": judge_inpainting,
    "superresolution": judge_superresolution,
    "sketch": judge_sketch,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=JUDGES)
    parser.add_argument("checkpoint")
    parser.add_argument("--num-steps", type=int, default=25, help="of DDIM")
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    model = load_model(args.checkpoint)
    rows = getattr(model.conditioning, "rows", None)
    if rows is None:
        sys.exit(f"The model has {model.conditioning.label}; expected a conditioning with held-out rows.")
    ids = torch.arange(rows.num_rows)
    shown = model.conditioning.shown(ids)
    how = {"guidance": as_guidance(args.guidance_scale), "batch_size": 64, "seed": args.seed}
    images = sample_images(model, Sampling(len(ids), args.num_steps, **how))
    for name, value in JUDGES[args.task](images.clamp(-1, 1), shown.truth.cpu(), rows.batch(ids)).items():
        print(f"{name:44}{value:.3f}")
