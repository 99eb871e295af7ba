"""Judges samples of colored shapes, of a model conditioned on class or text, by a classifier of real ones.

    python scripts/judge_shapes.py runs/shapes_class/checkpoints/last.ckpt
    python scripts/judge_shapes.py runs/shapes_text/checkpoints/last.ckpt --shapes cross heart --colors orange pink

A small network learns shape and color from real images of every shape and color there is (also those that the model
never saw), at the model's image size. Samples are asked for by class, or by captions such as "a small red circle on the
left"; how many does it read as what was asked for? Real images that it has not seen set the scale.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmprobe.data.builtin import load_builtin
from ldmprobe.data.shapes import COLORS, SHAPES
from ldmprobe.inference import sample_images
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.guidance import ClassifierFreeGuidance
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model

_TRAINING, _JUDGING = 1_000_001, 1_000_002  # seeds of real images, of no training run


def judge(
    model: DiffusionModel,
    shapes: list[str],
    colors: list[str],
    num_samples: int,
    num_steps: int = 25,
    guidance_scale: float = 2.0,
    seed: int = 1,
) -> bool:
    size = model.codec.decode(torch.zeros(1, *model.latent_shape, device=model.device)).shape[-1]
    rows = load_builtin("shapes", num_images=num_samples, size=size, seed=_JUDGING, shapes=shapes, colors=colors)
    asked = ask(model, rows)
    images = sample_images(
        model,
        Sampling(num_samples, num_steps, guidance=ClassifierFreeGuidance(guidance_scale), batch_size=100, seed=seed),
    )

    read = train_classifier(size)
    right, real_right = right_shares(read(images), asked), right_shares(read(pixels(rows)), labels(rows))
    print(f"{'':14}{num_samples} samples   {num_samples} real images")
    for what in right:
        print(f"{what + ' right':14}{right[what]:>11.1%}   {real_right[what]:>15.1%}")
    passed = right["both"] >= 0.80
    print("passed" if passed else "FAILED: expected both right in at least 80 %")
    return passed


def ask(model: DiffusionModel, rows: Any) -> Tensor:
    """Return what is asked of the model's samples, (N, 2): the captions of ``rows``, or each class in turn."""
    conditioning, names = model.conditioning, rows.features["label"].names
    if "caption" in conditioning.columns:
        conditioning.set_prompts(rows["caption"])
        return labels(rows)
    if "label" not in conditioning.columns:
        sys.exit(f"The model has {conditioning.label}; expected one of labels or captions.")
    if conditioning.spec["num_classes"] != len(names):
        sys.exit(
            f"The model has {conditioning.spec['num_classes']} classes, shapes and colors make {len(names)}; set "
            "--shapes and --colors."
        )
    return _numbers([names[i % len(names)] for i in range(len(rows))])


def train_classifier(size: int, num_images: int = 4000, num_steps: int = 400) -> Any:
    """A function from images (N, 3, size, size) in [−1, 1] to what it reads in them, (N, 2): numbers of shape and
    color."""
    rows = load_builtin("shapes", num_images=num_images, size=size, seed=_TRAINING, shapes=SHAPES, colors=list(COLORS))
    images, numbers = pixels(rows), labels(rows)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, len(SHAPES) + len(COLORS))),
        )
    optimizer = torch.optim.AdamW(network.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=num_steps)
    for _ in range(num_steps):
        chosen = torch.randint(num_images, (64,), generator=generator)
        noise = 0.05 * torch.randn(64, 3, size, size, generator=generator)  # samples are never quite clean
        shape, color = network(images[chosen] + noise).split([len(SHAPES), len(COLORS)], dim=1)
        loss = F.cross_entropy(shape, numbers[chosen, 0]) + F.cross_entropy(color, numbers[chosen, 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()

    @torch.no_grad()
    def read(images: Tensor) -> Tensor:
        shape, color = network(images.clamp(-1, 1)).split([len(SHAPES), len(COLORS)], dim=1)
        return torch.stack([shape.argmax(1), color.argmax(1)], dim=1)

    return read


def right_shares(read: Tensor, asked: Tensor) -> dict[str, float]:
    """Share of samples whose shape, color, and both are what was asked for."""
    right = read == asked
    return {
        "shape": float(right[:, 0].float().mean()),
        "color": float(right[:, 1].float().mean()),
        "both": float(right.all(1).float().mean()),
    }


def pixels(rows: Any) -> Tensor:
    """Images (N, 3, H, W) in [−1, 1]."""
    images = np.stack([np.asarray(image) for image in rows["image"]])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def labels(rows: Any) -> Tensor:
    """Numbers of shape and color, (N, 2)."""
    names = rows.features["label"].names
    return _numbers([names[label] for label in rows["label"]])


def _numbers(names: list[str]) -> Tensor:
    pairs = [name.split() for name in names]
    return torch.tensor([(SHAPES.index(shape), list(COLORS).index(color)) for color, shape in pairs])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES[:4]), help="to ask for (default: the first four)")
    parser.add_argument("--colors", nargs="+", default=list(COLORS)[:5], help="to ask for (default: the first five)")
    parser.add_argument("--num-samples", type=int, default=400)
    parser.add_argument("--num-steps", type=int, default=25, help="of DDIM")
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    settings = vars(args)
    sys.exit(0 if judge(load_model(settings.pop("checkpoint")), **settings) else 1)
