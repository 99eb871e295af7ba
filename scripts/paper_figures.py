"""The two figures of Roh et al., from a trained model: PCA scatters of the latents, and their KL around each denoiser
pass.

The second also shows what the paper does not: what a perfect model would do.

    python scripts/paper_figures.py runs/digits/checkpoints/last.ckpt --data builtin:digits --label-column label
    --image-size 32 --out figures python scripts/paper_figures.py PIPELINE_FOLDER_OR_HUB_ID --out figures

Without ``--data`` the principal components are those of the samples themselves and there is no ideal curve.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldmprobe.errors import ConfigurationError
from ldmprobe.inference import real_latents
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from ldmprobe.tracking.charts.static import png
from ldmprobe.tracking.pictures import curves_figure, scatter_figure
from ldmprobe.training.checkpoint.load import load_model


def make_figures(args: argparse.Namespace) -> list[Path]:
    model = load_model(args.model)
    reference: LatentStatistics | None = None
    if args.data is not None:
        reference = real_latents(model, args.data, args.image_column, args.label_column, args.image_size).reference
    record = probe_sampling(
        model,
        reference,
        Sampling(args.num_samples, args.num_steps, batch_size=args.batch_size),
        step=model.trained_steps,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    paths = [args.out / "latents_pca.png", args.out / "step_kl.png"]
    for path, figure in zip(paths, (scatter_figure(record, "pca"), curves_figure([record], ["step_kl"])), strict=True):
        path.write_bytes(png(figure, dpi=200))
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint of LatentDiffusion, or folder or hub id of a diffusers pipeline")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two figures")
    parser.add_argument("--data", help="dataset of real images, as ImageData's")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--label-column")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--num-samples", type=int, default=512)
    parser.add_argument("--num-steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64)
    try:
        print(*make_figures(parser.parse_args()), sep="\n")
    except ConfigurationError as error:
        parser.exit(2, f"paper_figures: error: {error}\n")
    sys.exit(0)
