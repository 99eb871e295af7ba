"""Does a trained network know what a picture beside z_t tells it? Inpainting and super-resolution of Gaussian images,
whose posterior is known.

    python scripts/trained_posteriors.py            (twenty minutes of one core)

A conditional U-Net is trained on `builtin:gaussian` at 8×8, once to fill in the half of an image that is hidden and once
to enlarge 4×4 block means; samples of it for known rows are held against the posterior, and against what the exact
denoiser makes of the same rows by the same sampler (bias and spread as in measurement_table.py).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import lightning as L
import torch
from diffusers import DDIMScheduler, UNet2DModel

import ldmprobe
from ldmprobe import BlockMeans, Conditioning, KnownPixels, LogSNRGrid, Sampling
from ldmprobe.models.conditioning import OfRows
from measurement_table import EXPONENT, FLOOR, SIZE, Posterior, Problem, sampled
from study.training import bare_trainer

RIGHT = (torch.arange(SIZE) >= SIZE // 2).expand(1, SIZE, SIZE)  # the hole: what is right of the middle
TASKS = {  # what is known, and what tells the network so, with the channels that it then has
    "left half known": (KnownPixels.outside(RIGHT[:, None].float()), ldmprobe.Masked(["halves"], (0.5, 0.5)), 3),
    "2 × 2 block means": (BlockMeans(2), ldmprobe.LowResolution(2, eight_bits=False), 2),
}


def trained(conditioning: Conditioning, channels: int, args: argparse.Namespace) -> ldmprobe.DiffusionModel:
    """The averaged weights after so many steps."""
    L.seed_everything(args.seed, verbose=False)
    network = UNet2DModel(
        sample_size=SIZE,
        in_channels=channels,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(64, 96),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
    )
    module = ldmprobe.LatentDiffusion(
        network,
        scheduler=DDIMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear", clip_sample=False),
        conditioning=conditioning,
        optimizer=partial(torch.optim.AdamW, lr=args.lr),
        lr_scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=args.lr, total_steps=args.steps),
        ema_decay=0.99,
    )
    kwargs = {"num_images": args.num_images, "channels": 1, "size": SIZE, "exponent": EXPONENT, "floor": FLOOR}
    data = ldmprobe.ImageData("builtin:gaussian", kwargs, batch_size=args.batch_size)
    bare_trainer(args.steps, gradient_clip_val=1.0).fit(module, data)
    return module.diffusion_model()


def told(model: ldmprobe.DiffusionModel, problem: Problem) -> ldmprobe.DiffusionModel:
    """The model, whose sample i is told row i mod K of the problem."""
    number = len(problem.images)
    rows = {"image": problem.images, "hole": RIGHT.expand(number, -1, -1), "index": torch.arange(number)}
    with torch.no_grad():
        return replace(model, conditioning=OfRows(model.conditioning, [rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--num-images", type=int, default=50_000)
    parser.add_argument("--num-samples", type=int, default=2000)
    parser.add_argument("--num-measurements", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sampling = Sampling(args.num_samples, 50, grid=LogSNRGrid(), batch_size=args.num_samples)
    for name, (operator, conditioning, channels) in TASKS.items():
        problem = Problem(operator, 0.0, args.num_measurements)
        exact = replace(sampling, guidance=Posterior(problem.means, problem.rest))
        model = trained(conditioning, channels, args)
        rows = {
            "exact draws": problem.exact(args.num_samples),
            "exact denoiser": sampled(problem, exact),
            "trained": sampled(problem, sampling, told(model, problem)),
        }
        print(f"\n| {name} (explains {problem.share:.0%}) | bias | spread |\n|---|---|---|")
        for label, (bias, spread) in rows.items():
            print(f"| {label} | {bias:.3f} | {spread:.2f} |", flush=True)


if __name__ == "__main__":
    main()
