"""Judges a cascade of configs/tasks on builtin:shapes: whether captions are followed, and what the base's faults cost.

    python scripts/judge_cascade.py runs/tasks/cascade_base/checkpoints/last.ckpt runs/tasks/cascade_upsampler/checkpoints/last.ckpt

A classifier of real images (`judge_shapes.py`) reads shape and color of the base's samples, of the cascade's, and of what the
upsampler makes of real small images. `cascade_gap` is the FID of the cascade less that of the upsampler on real small images. The
record is appended to the upsampler's run, whose report then shows it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from judge_shapes import ask, labels, pixels, right_shares, train_classifier
from ldmprobe.data.builtin import load_builtin
from ldmprobe.features.choose import chosen_network
from ldmprobe.inference import sample_images
from ldmprobe.io.store import RecordStore
from ldmprobe.models.cascade import cascaded
from ldmprobe.models.conditioning import LowResolution, OfRows
from ldmprobe.models.guidance import ClassifierFreeGuidance
from ldmprobe.probing.cascade import probe_cascade
from ldmprobe.probing.real_features import RealFeatures
from ldmprobe.probing.sampling import Sampling
from ldmprobe.tracking.report import write_report
from ldmprobe.training.checkpoint.load import load_model

_REAL, _JUDGED = 1_000_001, 1_000_002  # seeds of images, of no training run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("upsampler")
    parser.add_argument("--num-samples", type=int, default=400)
    parser.add_argument("--num-steps", type=int, default=25, help="of DDIM, for each of the two")
    parser.add_argument("--guidance-scale", type=float, default=1.5, help="of the base")
    parser.add_argument("--level", type=int, help="of noise on small images (default: the upsampler's)")
    parser.add_argument("--num-real", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    base, upsampler = load_model(args.base), load_model(args.upsampler)
    for part in upsampler.conditioning.modules():
        if args.level is not None and isinstance(part, LowResolution):
            part.sampling_level = args.level
    size = upsampler.codec.image_shape(upsampler.latent_shape)[-1]
    rows = load_builtin("shapes", num_images=args.num_samples, size=size, seed=_JUDGED)
    asked = ask(base, rows)
    plain = Sampling(args.num_samples, args.num_steps, batch_size=50, seed=args.seed)
    small = sample_images(base, replace(plain, guidance=ClassifierFreeGuidance(args.guidance_scale)))

    of_base = cascaded(base, upsampler, small)
    real = {"image": pixels(rows), "caption": rows["caption"], "label": torch.tensor(rows["label"])}
    with torch.no_grad():
        told = OfRows(upsampler.conditioning, [{**real, "index": torch.arange(args.num_samples)}])
    of_real = replace(upsampler, conditioning=told)

    classifier = cache(train_classifier)
    for name, images in {
        "base": small,
        "cascade": sample_images(of_base, plain),
        "upsampler on real images": sample_images(of_real, plain),
        "real images": pixels(rows),
    }.items():
        print(
            f"caption right, {name:28}{right_shares(classifier(images.shape[-1])(images), asked if name != 'real images' else labels(rows))['both']:.1%}"
        )

    network = chosen_network("builtin:cifar10")
    images = pixels(load_builtin("shapes", num_images=args.num_real, size=size, seed=_REAL))
    features = RealFeatures.of(network, images.split(100), upsampler.device, "builtin:shapes")
    record = probe_cascade(of_base, of_real, features, network, plain, step=upsampler.trained_steps)
    for name, value in record.scalars.items():
        print(f"{name:43}{value:.3f}")
    print(
        f"{'cascade_gap, of the FID of real images':43}{record.scalars['cascade_gap'] / record.scalars['fid_of_real_images']:.1%}"
    )
    for run in Path(args.upsampler).absolute().parents[:2]:
        if (run / "probes").is_dir():
            RecordStore(run).append(record)
            print(write_report(run))
