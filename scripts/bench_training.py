"""Time and memory per training step of a text-to-image model, side by side: diffusers' own example loop, LatentDiffusion, and LatentDiffusion from the
latent cache.

    python scripts/bench_training.py            (ten minutes on two cores)
    python scripts/bench_training.py --quick    (two)

The example is the loop of diffusers' examples/text_to_image/train_text_to_image.py: accelerate, AdamW, EMAModel, clipping at norm 1, a frozen autoencoder and CLIP
text model that encode each batch. Model, data, batch size, optimiser, thread and precision are the same; each measurement is a process of its own, in turn, and
ratios are taken within a round.

The autoencoder is built as Stable Diffusion's, in float32 and at ¼ of its width; the U-Net has three levels, at some ⅛ of the width.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn

from ldmprobe.models.text import SmallCLIP

SIZE, BATCH, WARM_UP = 64, 16, 5
WORDS = "a small large red green blue yellow purple circle square triangle star on the left right and"
LOOPS = ("example", "ours", "cached")


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    )


def text_encoder() -> SmallCLIP:
    return SmallCLIP(WORDS, width=64, num_layers=4)


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=16,
    )


def schedule() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


def example(steps: int) -> float:
    """Seconds per step of the example's loop."""
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    from ldmprobe.data.builtin import shapes

    accelerator = Accelerator(cpu=True)
    network, vae, text = unet(), autoencoder().requires_grad_(False).eval(), text_encoder()
    clip, tokenizer = text.encoders["text_encoder"].requires_grad_(False).eval(), text.tokenizers["tokenizer"]
    noise_scheduler = schedule()
    average = EMAModel(network.parameters(), model_cls=UNet2DConditionModel, model_config=network.config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    lr_scheduler = get_scheduler("constant", optimizer)
    rows = shapes(num_images=1000, size=SIZE)

    def prepared(batch: dict[str, Any]) -> dict[str, Any]:
        pixels = [torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) for image in batch["image"]]
        ids = tokenizer(batch["caption"], padding="max_length", truncation=True, return_tensors="pt").input_ids
        return {"pixel_values": [image.float() / 127.5 - 1 for image in pixels], "input_ids": list(ids)}

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: torch.stack([sample[name] for sample in samples]) for name in ("pixel_values", "input_ids")}

    loader = torch.utils.data.DataLoader(rows.with_transform(prepared), BATCH, shuffle=True, collate_fn=collate)
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
            accelerator.gather(loss.repeat(BATCH)).mean().item()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            average.step(network.parameters())
            step += 1


def ours(steps: int, cache: Path | None = None) -> float:
    """Seconds per step of LatentDiffusion in a Trainer."""
    import lightning as L

    from ldmprobe.data.images import ImageData
    from ldmprobe.models.codec import LatentCodec
    from ldmprobe.models.text import TextConditioning
    from ldmprobe.training.latent_diffusion import LatentDiffusion

    class Clock(L.Callback):
        began = ended = 0.0

        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == WARM_UP:
                self.began = time.perf_counter()

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == WARM_UP + steps:
                self.ended = time.perf_counter()

    data = ImageData(
        "builtin:shapes",
        dataset_kwargs={"num_images": 1000, "size": SIZE},
        caption_column="caption",
        batch_size=BATCH,
        **({} if cache is None else {"latents": str(cache)}),
    )
    model = LatentDiffusion(
        unet(),
        LatentCodec(autoencoder(), sample_posterior=cache is None),
        schedule(),
        TextConditioning(text_encoder(), dropout=0.0),
    )
    clock = Clock()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        L.Trainer(
            accelerator="cpu",
            max_steps=WARM_UP + steps,
            max_epochs=-1,
            logger=False,
            callbacks=[clock],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            gradient_clip_val=1.0,
            default_root_dir=folder,
        ).fit(model, data)
    return (clock.ended - clock.began) / steps


def child(loop: str, steps: int, cache: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    seconds = example(steps) if loop == "example" else ours(steps, cache if loop == "cached" else None)
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(loop: str, steps: int, cache: Path) -> tuple[float, float]:
    """Seconds per step, and the most memory that the process had, in MiB."""
    command = [sys.executable, __file__, "--child", loop, "--steps", str(steps), "--cache", str(cache)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, memory = told.split()[-2:]
    return float(seconds), float(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--child", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.steps, args.cache)
        return
    rounds, steps = (1, 10) if args.quick else (5, 40)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "latents"
        write_cache(cache)
        found = [{loop: measure(loop, steps, cache) for loop in LOOPS} for _ in range(rounds)]
    print("| ÷ diffusers' example | time per step | memory |\n| --- | --- | --- |")
    for loop, name in (("ours", "LatentDiffusion"), ("cached", "LatentDiffusion, from the latent cache")):
        time_, memory = (np.median([each[loop][i] / each["example"][i] for each in found]) for i in (0, 1))
        print(f"| {name} | {time_:.2f} | {memory:.2f} |")
    speed_up = np.median([each["ours"][0] / each["cached"][0] for each in found])
    milliseconds = 1000 * np.median([each["example"][0] for each in found])
    print(f"\nThe cache makes a step {speed_up:.1f} times as fast; the example's takes {milliseconds:.0f} ms here.")


if __name__ == "__main__":
    main()
