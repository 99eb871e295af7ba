"""Does the scale of ε̂ that exposure suggests make better samples? FID with it, without, and with its inverse.

    python scripts/bench_exposure.py runs/digits/checkpoints/last.ckpt --features builtin:digits --data builtin:digits
        --label-column label --image-size 32    (four minutes of one core)

For DDIM at several numbers of passes: the suggested scale, and FID in features that no training has seen, from the same
starting noises, by how much it is above that of the unscaled sampler, paired sample by sample, with a 95 % interval by
a jackknife over samples.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from fast_samplers import features_of, final_latents, real_features, without_groups
from ldmprobe.analysis.intervals import NORMAL, jackknife
from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.samplers import ScaledEpsilon
from ldmprobe.errors import ConfigurationError
from ldmprobe.features.classifier import FeatureNetwork
from ldmprobe.probing.analyses import Exposure
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.probe import evaluating
from ldmprobe.probing.quality import frechet_distance
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from ldmprobe.training.checkpoint.load import load_model

SCALES = {"as it is": 0, "suggested": 1, "its inverse": -1}  # the power of the suggested scale


def main(args: argparse.Namespace) -> None:
    model, network = load_model(args.model), FeatureNetwork(args.features)
    data = ImageData(
        args.data, image_column=args.image_column, label_column=args.label_column, image_size=args.image_size
    )
    data.setup()
    reference = LatentStatistics.load(args.model.parent.parent / "reference.safetensors")
    with evaluating(model.modules):
        held_out = HeldOut.encode(model.codec, model.conditioning, data.reference_batches(128, held_out=True))
    distance = partial(frechet_distance, real_features(args, network, model.device))
    print("| passes | suggested | FID as it is | with the suggested scale | with its inverse |\n|---|---|---|---|---|")
    for passes in args.passes:
        record = probe_sampling(model, reference, Sampling(256, passes), [Exposure()], held_out)
        scale, width = (record.scalars[f"epsilon_scale{end}"] for end in ("", "_half_width"))
        cells = [str(passes), f"{scale:.4f} ± {width:.4f}"]
        plain = None
        for power in SCALES.values():
            sampling = Sampling(args.num_samples, passes, ScaledEpsilon(scale**power), batch_size=256)
            fid = without_groups(features_of(model, final_latents(model, sampling), network), distance)
            plain = fid if plain is None else plain
            value, error = jackknife(fid[0] - plain[0], fid[1:] - plain[1:])
            cells.append(f"{float(value):+.3f} ± {NORMAL * float(error):.3f}" if power else f"{float(fid[0]):.3f}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint in its run's directory")
    parser.add_argument("--features", required=True, help="builtin:digits, builtin:cifar10, or a folder")
    parser.add_argument("--data", required=True, help="real images, as ImageData's dataset")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--label-column")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--passes", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--num-real", type=int, default=2000)
    try:
        main(parser.parse_args())
    except ConfigurationError as error:
        parser.exit(2, f"bench_exposure: error: {error}\n")
    sys.exit(0)
