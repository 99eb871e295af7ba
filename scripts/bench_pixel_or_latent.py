"""Diffusion in pixels beside diffusion in latents at f = 2, 4, 8, with the same number of parameters: CPU seconds per
training step and per sample, and memory.

    python scripts/bench_pixel_or_latent.py              (images of 64 pixels; five minutes of one core)
    python scripts/bench_pixel_or_latent.py --size 128   (fifteen)

The U-Net is the same but for its first and last convolution, which read 3 channels of pixels or 4 of latents. The
autoencoders have random weights, which costs what trained ones cost. A training step is LatentDiffusion's in a Trainer,
once with the autoencoder encoding each batch and once from the latent cache; a sample is 20 passes of DDIM and the
decoder. Every measurement is a process of its own with one thread, and ratios to pixels are taken within a round.

What quality this buys is another question: scripts/first_stage_study.py lays FID over seconds of training.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DModel

from ldmprobe import ImageData, LatentCodec, LatentDiffusion, Sampling, sample_images
from ldmprobe.data.latent_writer import write_cache
from study.timing import step_seconds

FACTORS = (1, 2, 4, 8)
BATCH, WARM_UP, STEPS, SAMPLES, PASSES = 8, 2, 8, 8, 20


def save_autoencoder(factor: int, folder: Path) -> None:
    torch.manual_seed(0)
    widths = [32, 64, 64, 64][: factor.bit_length()]
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=1,
        latent_channels=4,
        mid_block_add_attention=False,
    ).save_pretrained(folder)


def model(factor: int, size: int, folder: Path) -> LatentDiffusion:
    torch.manual_seed(0)
    channels = 3 if factor == 1 else 4
    network = UNet2DModel(
        sample_size=size // factor,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(48, 96, 96),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        norm_num_groups=16,
        attention_head_dim=32,
    )
    return LatentDiffusion(network, None if factor == 1 else LatentCodec(str(folder)))


def images(size: int) -> ImageData:
    settings = {"size": size, "num_images": BATCH * (WARM_UP + STEPS + 1)}
    return ImageData("builtin:shapes", dataset_kwargs=settings, batch_size=BATCH, check_rows=1)


def sample_seconds(trained: LatentDiffusion) -> float:
    """CPU seconds per sample."""
    drawn = Sampling(num_samples=SAMPLES, batch_size=SAMPLES, num_steps=PASSES)
    began = time.process_time()
    sample_images(trained.diffusion_model(), drawn)
    return (time.process_time() - began) / SAMPLES


def child(what: str, factor: int, size: int) -> None:
    """Print one measurement, the process's peak of memory above what its imports took (MiB), and the parameters."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if factor > 1:
            save_autoencoder(factor, folder / "autoencoder")
        trained, data = model(factor, size, folder / "autoencoder"), images(size)
        if what == "cached" and factor > 1:
            write_cache(data, trained.codec, trained.conditioning, trained.network, folder / "latents")
            data.latents = str(folder / "latents")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if what == "sample":
            seconds = sample_seconds(trained)
        else:
            seconds = step_seconds(trained, data, WARM_UP, STEPS, time.process_time)
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    parameters = sum(each.numel() for each in trained.network.parameters())
    print(json.dumps({"seconds": seconds, "memory": memory, "parameters": parameters}))


def measure(what: str, factor: int, size: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", what, "--factor", str(factor), "--size", str(size)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="pixels a side (default: 64)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=("train", "cached", "sample"), help=argparse.SUPPRESS)
    parser.add_argument("--factor", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.factor, args.size)
        return
    kinds = ("train", "cached", "sample")
    rounds = [{(what, f): measure(what, f, args.size) for f in FACTORS for what in kinds} for _ in range(args.rounds)]

    def ratio(what: str, factor: int, unit: str) -> float:
        return float(np.median([each[what, 1][unit] / each[what, factor][unit] for each in rounds]))

    print("Times as fast as pixels, and as small; one thread.\n")
    print("| | parameters | training | from the latent cache | sampling | memory, training | memory, sampling |")
    print("|---|---|---|---|---|---|---|")
    for f in FACTORS:
        name = "pixels" if f == 1 else f"f = {f}"
        told = [f"{rounds[0]['train', f]['parameters'] / 1e6:.2f} M"]
        told += [f"{ratio(what, f, 'seconds'):.1f}" for what in kinds]
        told += [f"{ratio(what, f, 'memory'):.1f}" for what in ("train", "sample")]
        print(f"| {name} | {' | '.join(told)} |")
    step, sample = (np.median([each[what, 1]["seconds"] for each in rounds]) for what in ("train", "sample"))
    print(f"\nIn pixels a step on {BATCH} images takes {step:.2f} CPU s here, a sample {sample:.2f}.")


if __name__ == "__main__":
    main()
