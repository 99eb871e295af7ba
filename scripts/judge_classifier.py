"""Classifier guidance over its scale: how many samples are of their class, and how good they are.

    ldmprobe fit --config configs/digits.yaml --config configs/tasks/unconditional.yaml --run_dir runs/digits_unconditional
    ldmprobe fit --config configs/tasks/classifier.yaml
    python scripts/judge_classifier.py runs/digits_unconditional/checkpoints/last.ckpt runs/tasks/classifier/checkpoints/last.ckpt

A model of digits that was never told a class is guided to each of ten in turn. Whether a sample is of its class says the shipped
classifier of clean digits, which neither of the two has met; FID is in its features.
"""

from __future__ import annotations

import argparse
import sys

import torch

from ldmprobe import ClassifierGuidance, ClassifierModel, FeatureNetwork, ImageData
from ldmprobe.errors import ConfigurationError
from ldmprobe.inference import sample_images
from ldmprobe.probing.quality import frechet_distance
from ldmprobe.probing.real_features import RealFeatures
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model

SCALES = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0)


def main(args: argparse.Namespace) -> None:
    model, classifier = load_model(args.model), ClassifierModel.load(args.classifier)
    judge, data = FeatureNetwork("builtin:digits"), ImageData("builtin:digits", image_size=32)
    data.setup()
    images = (batch["image"] for batch in data.reference_images(args.num_real))
    real = RealFeatures.of(judge, images, torch.device("cpu")).features
    print("| scale | right | with p > .9 | FID |\n|---|---|---|---|")
    for scale in args.scales:
        guidance = ClassifierGuidance(classifier, scale)
        guidance.check(model)
        sampling = Sampling(args.num_samples, args.num_steps, guidance=guidance, batch_size=250, seed=args.seed)
        with torch.no_grad():
            features = judge(sample_images(model, sampling))
            chance = judge.classifier.head(features).softmax(1)
        labels = torch.arange(args.num_samples) % classifier.num_classes
        right, sure = chance.argmax(1) == labels, chance.gather(1, labels[:, None])[:, 0] > 0.9
        distance = float(frechet_distance(real, features.double()))
        print(f"| {scale:g} | {right.float().mean():.1%} | {sure.float().mean():.1%} | {distance:.3f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint of a model of digits")
    parser.add_argument("classifier", help="checkpoint of configs/tasks/classifier.yaml")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--num-steps", type=int, default=25)
    parser.add_argument("--num-real", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=1)
    try:
        main(parser.parse_args())
    except ConfigurationError as error:
        parser.exit(2, f"judge_classifier: error: {error}\n")
    sys.exit(0)
