"""Builds the digits autoencoder that ships with ldmprobe (about four minutes on two cores).

    python scripts/build_digits_autoencoder.py --out ldmprobe/models/digits_autoencoder

A diffusers AutoencoderKL from 32×32 grey images to latents of 2×8×8, trained on the training rows of ``builtin:digits`` (the
held-out rows are never seen), stored in half precision with its latents' measured scale and shift.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from ldmprobe.data.images import ImageData


def build(steps: int, seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    data = ImageData("builtin:digits", label_column="label", image_size=32, batch_size=64)
    data.setup()
    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=2,
        block_out_channels=(8, 16, 28),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=32,
    )
    train = torch.cat([batch["image"] for batch in data.reference_batches(10_000)])
    held_out = torch.cat([batch["image"] for batch in data.reference_batches(10_000, held_out=True)])
    print(f"{sum(p.numel() for p in autoencoder.parameters()):,} parameters, {len(train)} training images")
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        images = train[torch.randint(len(train), (64,))]
        posterior = autoencoder.encode(images).latent_dist
        reconstruction = autoencoder.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / math.prod(posterior.mean.shape[1:])
        loss = F.mse_loss(reconstruction, images) + 1e-3 * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 199 or step == steps - 1:
            with torch.no_grad():
                error = F.mse_loss(autoencoder.decode(autoencoder.encode(held_out).latent_dist.mode()).sample, held_out)
            print(f"step {step + 1}: held-out squared error {error:.2e}", flush=True)
    autoencoder.half().float()  # what will be read back
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(images).latent_dist.mode() for images in train.split(256)])
    autoencoder.register_to_config(
        shift_factor=round(float(latents.mean()), 6), scaling_factor=round(1 / float(latents.std()), 6)
    )
    return autoencoder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write config.json and the weights to")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out.exists() and any(args.out.glob("*.safetensors")):
        parser.error(f"{args.out} already holds an autoencoder; remove it first or choose another --out")
    build(args.steps, args.seed).half().save_pretrained(args.out, safe_serialization=True)
    print(f"written to {args.out}")
