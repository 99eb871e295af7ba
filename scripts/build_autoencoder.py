"""Trains a small AutoencoderKL on any dataset of images; made the digits autoencoder that ships with ldmprobe.

    python scripts/build_autoencoder.py --dataset builtin:digits --out ldmprobe/models/digits_autoencoder     # four
    minutes, two cores python scripts/build_autoencoder.py --dataset PATH_OR_HUB_ID --image-column img --latent-channels
    4 --width 16 32 48 --out DIR

Each width after the first halves the size, so that three of them take 32×32 pixels to latents of 8×8. It is trained by
squared error and a small KL on training rows alone (the held-out rows only measure it) and stored in half precision
with its latents' measured scale and shift: a folder for LatentCodec.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from ldmprobe.data.images import ImageData


def build(data: ImageData, args: argparse.Namespace) -> AutoencoderKL:
    torch.manual_seed(args.seed)
    data.setup()
    channels, size = data.image_shape[0], data.image_shape[-1]
    autoencoder = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=args.latent_channels,
        block_out_channels=tuple(args.width),
        down_block_types=("DownEncoderBlock2D",) * len(args.width),
        up_block_types=("UpDecoderBlock2D",) * len(args.width),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=size,
    )
    train = torch.cat([batch["image"] for batch in data.reference_batches(args.num_images)])
    held_out = torch.cat([batch["image"] for batch in data.reference_batches(1_000, held_out=True)])
    print(f"{sum(p.numel() for p in autoencoder.parameters()):,} parameters, {len(train)} training images")
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=args.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps)
    for step in range(args.steps):
        images = train[torch.randint(len(train), (args.batch_size,))]
        posterior = autoencoder.encode(images).latent_dist
        reconstruction = autoencoder.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / math.prod(posterior.mean.shape[1:])
        loss = F.mse_loss(reconstruction, images) + args.kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 199 or step == args.steps - 1:
            error = _squared_error(autoencoder, held_out)
            print(
                f"step {step + 1}: held-out squared error {error:.2e}, PSNR {10 * math.log10(4 / error):.1f} dB",
                flush=True,
            )
    autoencoder.half().float()  # what will be read back
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(images).latent_dist.mode() for images in train.split(256)])
    autoencoder.register_to_config(
        shift_factor=round(float(latents.mean()), 6), scaling_factor=round(1 / float(latents.std()), 6)
    )
    return autoencoder


@torch.no_grad()
def _squared_error(autoencoder: AutoencoderKL, images: torch.Tensor) -> float:
    """Per pixel and channel, of images in [−1, 1] and what they are decoded to."""
    parts = [autoencoder.decode(autoencoder.encode(part).latent_dist.mode()).sample for part in images.split(256)]
    return float(F.mse_loss(torch.cat(parts), images))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", required=True, help="as ImageData takes it: built in, a folder, a file or a hub id"
    )
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--num-images", type=int, default=10_000, help="training images kept in memory")
    parser.add_argument("--latent-channels", type=int, default=2)
    parser.add_argument(
        "--width", type=int, nargs="+", default=[8, 16, 28], help="channels at each size; multiples of 4"
    )
    parser.add_argument("--kl-weight", type=float, default=1e-3)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to write config.json and the weights to")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.glob("*.safetensors")):
        parser.error(f"{args.out} already holds an autoencoder; remove it first or choose another --out")
    data = ImageData(args.dataset, image_column=args.image_column, image_size=args.image_size)
    build(data, args).half().save_pretrained(args.out, safe_serialization=True)
    print(f"written to {args.out}")
