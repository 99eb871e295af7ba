"""Time and memory per training step of a text-to-image model, side by side: diffusers' own example loop,
LatentDiffusion, and LatentDiffusion from the latent cache.

    python scripts/bench_training.py                          (five minutes)
    python scripts/bench_training.py --quick                  (one)
    python scripts/bench_training.py --like stable-diffusion  (ten)

The example is the loop of diffusers' examples/text_to_image/train_text_to_image.py: accelerate, AdamW, EMAModel,
clipping at norm 1, a frozen autoencoder and CLIP text model that encode each batch. Model, data, batch size, optimizer,
thread and precision are the same; each measurement is a process of its own, in turn, and ratios are taken within a
round.

The autoencoder is built as Stable Diffusion's, in float32 and at ¼ of its width. How much the cache saves hangs on how
large the U-Net is beside it: "small" has three levels at some ⅛ of Stable Diffusion's width, on images of 64 pixels;
"stable-diffusion" is built as Stable Diffusion's 1.5, like the autoencoder at ¼ of its width, on images of 512.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ldmprobe.data.images import ImageData
from ldmprobe.data.latent_writer import write_cache
from ldmprobe.data.shapes import shapes
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import SmallCLIP, TextConditioning
from ldmprobe.pretrained.load import PretrainedText
from ldmprobe.training.latent_diffusion import LatentDiffusion
from study.timing import step_seconds

WARM_UP = 2
WORDS = "a small large red green blue yellow purple circle square triangle star on the left right and"
LOOPS = ("example", "ours", "cached")


@dataclass(frozen=True)
class Setting:
    """Images of ``size`` pixels, the U-Net's channels by level, and how many steps of it are timed in a round."""

    size: int
    batch_size: int
    channels: tuple[int, ...]
    layers_per_block: int
    num_images: int
    num_steps: int


SETTINGS = {
    "small": Setting(64, 16, (32, 64, 128), 1, 1000, 30),
    "stable-diffusion": Setting(512, 1, (80, 160, 320, 320), 2, 40, 3),
}


def save_pipeline(folder: Path, setting: Setting) -> None:
    """A text-to-image pipeline with random weights, for all to start from."""
    text = SmallCLIP(WORDS, width=64, num_layers=4)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        sample_size=setting.size // 8,
        in_channels=4,
        out_channels=4,
        layers_per_block=setting.layers_per_block,
        block_out_channels=setting.channels,
        down_block_types=(*("CrossAttnDownBlock2D",) * (len(setting.channels) - 1), "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * (len(setting.channels) - 1)),
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    StableDiffusionPipeline(
        vae=autoencoder,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **text.components,
    ).save_pretrained(folder)


def images(setting: Setting) -> ImageData:
    return ImageData(
        "builtin:shapes",
        dataset_kwargs={"num_images": setting.num_images, "size": setting.size},
        caption_column="caption",
        batch_size=setting.batch_size,
        check_rows=1,
    )


def model(folder: Path) -> LatentDiffusion:
    return LatentDiffusion(
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        LatentCodec(str(folder), subfolder="vae", sample_posterior=True),
        DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
        TextConditioning(PretrainedText(str(folder)), dropout=0.0),
    )


def cache_latents(folder: Path, setting: Setting) -> None:
    trained, data = model(folder), images(setting)
    write_cache(data, trained.codec, trained.conditioning, trained.network, folder / "latents")


def example(folder: Path, setting: Setting, steps: int) -> float:
    """Seconds per step of the example's loop."""
    accelerator = Accelerator(cpu=True)
    network: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae").requires_grad_(False)
    clip: Any = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").requires_grad_(False)
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    noise_scheduler: Any = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    average = EMAModel(network.parameters(), model_cls=UNet2DConditionModel, model_config=network.config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    lr_scheduler = get_scheduler("constant", optimizer)
    rows = shapes(num_images=setting.num_images, size=setting.size)

    def prepared(batch: dict[str, Any]) -> dict[str, Any]:
        pixels = [
            torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) for image in batch["image"]
        ]
        ids = tokenizer(batch["caption"], padding="max_length", truncation=True, return_tensors="pt").input_ids
        return {"pixel_values": [image.float() / 127.5 - 1 for image in pixels], "input_ids": list(ids)}

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: torch.stack([sample[name] for sample in samples]) for name in ("pixel_values", "input_ids")}

    loader = torch.utils.data.DataLoader(
        rows.with_transform(prepared), setting.batch_size, shuffle=True, collate_fn=collate
    )
    network, optimizer, loader, lr_scheduler = accelerator.prepare(network, optimizer, loader, lr_scheduler)
    network.train()
    step, began = 0, 0.0
    while True:
        for batch in loader:
            if step == WARM_UP:
                began = time.perf_counter()
            if step == WARM_UP + steps:
                return (time.perf_counter() - began) / steps
            latents = vae.encode(batch["pixel_values"]).latent_dist.sample() * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            t = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents),)).long()
            noisy = noise_scheduler.add_noise(latents, noise, t)
            told = clip(batch["input_ids"], return_dict=False)[0]
            prediction = network(noisy, t, told, return_dict=False)[0]
            loss = nn.functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
            accelerator.gather(loss.repeat(setting.batch_size)).mean().item()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            average.step(network.parameters())
            step += 1


def ours(folder: Path, setting: Setting, steps: int, cached: bool) -> float:
    """Seconds per step of LatentDiffusion in a Trainer."""

    data = images(setting)
    data.latents = str(folder / "latents") if cached else None
    return step_seconds(model(folder), data, WARM_UP, steps, time.perf_counter)


def child(loop: str, folder: Path, setting: Setting, steps: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    seconds = example(folder, setting, steps) if loop == "example" else ours(folder, setting, steps, loop == "cached")
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(loop: str, folder: Path, like: str, steps: int) -> tuple[float, float]:
    """Seconds per step, and the most memory that the process had, in MiB."""
    command = [
        sys.executable,
        __file__,
        "--child",
        loop,
        "--folder",
        str(folder),
        "--like",
        like,
        "--steps",
        str(steps),
    ]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, memory = told.split()[-2:]
    return float(seconds), float(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--like", choices=SETTINGS, default="small", help="whose proportions (default: small)")
    parser.add_argument("--child", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    setting = SETTINGS[args.like]
    if args.child:
        child(args.child, args.folder, setting, args.steps)
        return
    rounds, steps = (1, setting.num_steps // 3) if args.quick else (3, setting.num_steps)
    with tempfile.TemporaryDirectory() as folder:
        save_pipeline(Path(folder), setting)
        cache_latents(Path(folder), setting)
        found = [{loop: measure(loop, Path(folder), args.like, steps) for loop in LOOPS} for _ in range(rounds)]
    print("| ÷ diffusers' example | time per step | memory |\n| --- | --- | --- |")
    for loop, name in (("ours", "LatentDiffusion"), ("cached", "LatentDiffusion, from the latent cache")):
        time_, memory = (np.median([each[loop][i] / each["example"][i] for each in found]) for i in (0, 1))
        print(f"| {name} | {time_:.2f} | {memory:.2f} |")
    speed_up = np.median([each["ours"][0] / each["cached"][0] for each in found])
    milliseconds = 1000 * np.median([each["example"][0] for each in found])
    print(f"\nThe cache makes a step {speed_up:.1f} times as fast; the example's takes {milliseconds:.0f} ms here.")


if __name__ == "__main__":
    main()
