"""Trains a feature network: a small classifier, in whose features sets of images are compared. Made those that ship
with ldmprobe.

    python scripts/build_feature_network.py --dataset builtin:digits --width 8 16 32 64 --steps 800 --out
    ldmprobe/features/digits python scripts/build_feature_network.py --dataset CIFAR10 --image-column img --flip --steps
    3000 --out ldmprobe/features/cifar10

The held-out rows only measure it. Training images are shifted by up to two pixels and given a little noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmprobe.data.images import ImageData
from ldmprobe.features.classifier import ImageClassifier


def build(data: ImageData, width: list[int], flip: bool, steps: int, seed: int) -> ImageClassifier:
    torch.manual_seed(seed)
    data.setup()
    images, labels = _read(data, held_out=False)
    held_out = _read(data, held_out=True)
    classifier = ImageClassifier(images.shape[1], data.num_classes or 0, width)
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    print(f"{sum(p.numel() for p in classifier.parameters()):,} parameters, {len(images)} training images", flush=True)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=5e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    rows = torch.cat([torch.randperm(len(images)) for _ in range(1 + steps * 128 // len(images))])
    for step, batch in enumerate(rows.split(128)[:steps]):
        augmented = _augmented(images[batch].float(), flip).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast where the processor knows bfloat16
            loss = F.cross_entropy(classifier(augmented), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 199:
            accuracy = _accuracy(classifier, *held_out, 1000)
            print(f"step {step + 1}: training loss {loss.item():.3f}, held-out accuracy {accuracy:.1%}", flush=True)
    classifier.half().float()  # what will be read back
    print(f"held-out accuracy {_accuracy(classifier, *held_out):.2%} of {len(held_out[0])}")
    return classifier


def _read(data: ImageData, held_out: bool) -> tuple[Tensor, Tensor]:
    """All images, in half precision for the sake of memory, and labels."""
    batches = [(batch["image"].half(), batch["label"]) for batch in data.reference_batches(1_000_000, held_out)]
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def _augmented(images: Tensor, flip: bool) -> Tensor:
    n, _, height, width = images.shape
    if flip:
        images = torch.where(torch.rand(n, 1, 1, 1) < 0.5, images.flip(3), images)
    shifts = F.pad(images, [2] * 4, mode="reflect").unfold(2, height, 1).unfold(3, width, 1)
    images = shifts[torch.arange(n), :, torch.randint(5, (n,)), torch.randint(5, (n,))]
    # Noise of five times this made the digits network blind to noise of 0.2.
    return images + 0.02 * torch.rand(n, 1, 1, 1) * torch.randn_like(images)


@torch.no_grad()
def _accuracy(classifier: ImageClassifier, images: Tensor, labels: Tensor, num_images: int | None = None) -> float:
    classifier.eval()
    parts = [classifier(part.float()).argmax(1) for part in images[:num_images].split(500)]
    classifier.train()
    return float((torch.cat(parts) == labels[:num_images]).float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", required=True, help="as ImageData takes it: built in, a folder, a file or a hub id"
    )
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--label-column", default="label")
    parser.add_argument(
        "--width", type=int, nargs="+", default=[24, 48, 96, 96], help="channels of each stage; the last: features"
    )
    parser.add_argument("--flip", action="store_true", help="mirror half of the training images")
    parser.add_argument("--steps", type=int, default=3000, help="of 128 images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to write config.json and the weights to")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.glob("*.safetensors")):
        parser.error(f"{args.out} already holds a feature network; remove it first or choose another --out")
    data = ImageData(args.dataset, image_column=args.image_column, label_column=args.label_column, image_size=32)
    build(data, args.width, args.flip, args.steps, args.seed).save(args.out)
    print(f"written to {args.out}")
