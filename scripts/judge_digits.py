"""Judges class-conditional digit samples by a classifier of real digits, and looks for copies of training images.

    python scripts/judge_digits.py runs/digits/checkpoints/last.ckpt

A small neural network is trained on the real training digits (8×8). Of 500 samples, made by DPM-Solver++ 2M in ten
steps, how many does it recognize with p >
0.9, and is the class the one that was asked for? Real held-out digits set the scale. Nearest-neighbor distances to
training digits tell memorizing from generating: copies would be much nearer than real held-out digits are.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.grids import LogSNRGrid
from ldmprobe.diffusion.samplers import DPMSolver
from ldmprobe.inference import sample_images
from ldmprobe.models.guidance import ClassifierFreeGuidance
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model


def judge(checkpoint: str, num_samples: int, guidance_scale: float, seed: int) -> bool:
    data = ImageData("builtin:digits", label_column="label", image_size=32)
    data.setup()
    train, train_labels = _pixels(data, held_out=False)
    real, real_labels = _pixels(data, held_out=True)
    classifier = MLPClassifier((128,), alpha=1e-2, max_iter=400, random_state=0).fit(train, train_labels)

    model = load_model(checkpoint)
    guidance = ClassifierFreeGuidance(guidance_scale)
    sampling = Sampling(num_samples, 10, DPMSolver(), LogSNRGrid(), guidance=guidance, batch_size=250, seed=seed)
    images = sample_images(model, sampling)
    samples = _small(images)
    asked = np.arange(num_samples) % 10

    sure, right = _recognized(classifier, samples, asked)
    real_sure, real_right = _recognized(classifier, real, real_labels)
    distance, real_distance = _nearest(samples, train), _nearest(real, train)
    print(f"{'':34}{num_samples} samples   {len(real)} held-out real digits")
    print(f"{'recognized with p > 0.9':34}{sure:>11.1%}   {real_sure:>10.1%}")
    print(f"{'label right':34}{right:>11.1%}   {real_right:>10.1%}")
    print(
        f"{'distance to nearest training digit':34}{np.median(distance):>11.2f}   {np.median(real_distance):>10.2f}   "
        "(median)"
    )
    print(f"{'':34}{np.quantile(distance, 0.05):>11.2f}   {np.quantile(real_distance, 0.05):>10.2f}   (5 % quantile)")
    passed = sure >= 0.90 and right >= 0.95 and np.median(distance) > 0.7 * np.median(real_distance)
    print(
        "passed"
        if passed
        else "FAILED: expected at least 90 % recognized, 95 % right, and distances like those of real digits"
    )
    return bool(passed)


def _pixels(data: ImageData, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    batches = list(data.reference_batches(10_000, held_out))
    return _small(torch.cat([b["image"] for b in batches])), torch.cat([b["label"] for b in batches]).numpy()


def _small(images: Tensor) -> np.ndarray:
    """Back to the digits' own 8×8 pixels, one row each."""
    return F.avg_pool2d(images.clamp(-1, 1), 4).flatten(1).numpy()


def _recognized(classifier: MLPClassifier, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    probability = classifier.predict_proba(images)
    return float((probability.max(1) > 0.9).mean()), float((probability.argmax(1) == labels).mean())


def _nearest(images: np.ndarray, train: np.ndarray) -> np.ndarray:
    return np.sqrt(((images[:, None] - train[None]) ** 2).sum(2)).min(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--num-samples", type=int, default=500)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    sys.exit(0 if judge(args.checkpoint, args.num_samples, args.guidance_scale, args.seed) else 1)
