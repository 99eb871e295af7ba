"""Do samples bear out the LoRA strength that the probe names? Old and new asked of it at s* and at 1.

    ldmprobe fit --config configs/shapes_text.yaml                                     (14 minutes of one core)
    python scripts/bench_lora_strength.py runs/shapes_text/checkpoints/last.ckpt       (20 minutes of one core)

The base model draws circles, squares, triangles and stars in five colors; a LoRA teaches it crosses and hearts in orange
and pink, once for each seed. The probe finds s* in held-out latents of both kinds. Then captions of both kinds are
asked for, by the same captions and starting noises at s = 0, at s* and at 1, and a classifier of real shapes reads what
came out. The trade is the mean of the shares right, of the old and of the new; its difference is paired by sample.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from judge_shapes import labels, train_classifier
from ldmprobe.analysis.intervals import clustered_mean
from ldmprobe.callbacks import LoRAStrength
from ldmprobe.data.builtin import load_builtin
from ldmprobe.data.images import ImageData
from ldmprobe.data.shapes import COLORS, SHAPES
from ldmprobe.diffusion.grids import LogSNRGrid
from ldmprobe.diffusion.samplers import DPMSolver
from ldmprobe.inference import sample_images
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.models.guidance import ClassifierFreeGuidance
from ldmprobe.pretrained.lora import LoRA
from ldmprobe.pretrained.source import Source
from ldmprobe.probing.lora_strength import BEST, PROBE
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model
from ldmprobe.training.finetuning import FinetunedDiffusion
from study.training import bare_trainer

OLD: dict[str, Any] = {"shapes": list(SHAPES[:4]), "colors": list(COLORS)[:5]}
NEW: dict[str, Any] = {"shapes": ["cross", "heart"], "colors": ["orange", "pink"]}
SIZE, TRAINING, ASKED = 16, 1, 1_000_003  # pixels, and seeds of rows


def data_of(kind: dict[str, Any], seed: int) -> ImageData:
    kwargs = {"num_images": 2000, "size": SIZE, "seed": seed, **kind}
    return ImageData("builtin:shapes", dataset_kwargs=kwargs, caption_column="caption", batch_size=32)


def finetune(base: Path, folder: Path, seed: int, steps: int) -> ProbeRecord:
    """Train a LoRA as configs/shapes_lora.yaml does, and return what its probe says at the end."""
    torch.manual_seed(seed)
    lora = LoRA(rank=8, targets=("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"))
    optimizer = partial(torch.optim.AdamW, lr=3e-3)
    module = FinetunedDiffusion(str(base), lora=lora, optimizer=optimizer, ema_decay=0.98, seed=seed)
    probe = LoRAStrength(data_of(OLD, 0), num_images=128, num_draws=128)
    trainer = bare_trainer(steps, probe, default_root_dir=str(folder), gradient_clip_val=1.0)
    trainer.fit(module, data_of(NEW, TRAINING))
    trainer.save_checkpoint(folder / "last.ckpt")
    return RecordStore(folder).read(PROBE)[-1]


def right(checkpoint: Path, strength: float, kind: dict[str, Any], number: int, read: Any) -> np.ndarray:
    """Return of which samples both shape and color are what was asked for, (N,)."""
    model = load_model(Source(str(checkpoint), lora_strength=strength))
    rows = load_builtin("shapes", num_images=number, size=SIZE, seed=ASKED, **kind)
    model.conditioning.set_prompts(rows["caption"])
    guidance = ClassifierFreeGuidance(2.0)
    sampling = Sampling(number, 10, DPMSolver(), LogSNRGrid(), guidance=guidance, batch_size=100, seed=1)
    return (read(sample_images(model, sampling)) == labels(rows)).all(1).double().numpy()


def main(args: argparse.Namespace) -> None:
    read, number = train_classifier(SIZE), args.num_samples
    print("| seed | s | old right | new right | trade above that of s = 1 |\n|---|---|---|---|---|")
    said = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as place:
            found = finetune(args.base, Path(place), seed, args.steps)
            best = found.scalars[BEST]
            shares = {
                s: np.stack([right(Path(place) / "last.ckpt", s, kind, number, read) for kind in (OLD, NEW)])
                for s in (0.0, best, 1.0)
            }
        for s, (old, new) in shares.items():
            above = clustered_mean(shares[s].mean(0) - shares[1.0].mean(0), np.arange(number))
            told = f"{old.mean():.1%} | {new.mean():.1%} | {above.value:+.1%} ± {above.half_width:.1%}"
            print(f"| {seed} | {s:.2f} | {told} |", flush=True)
        said.append(f"seed {seed}: {found.provenance['summary']}")
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="checkpoint of configs/shapes_text.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of each finetune")
    parser.add_argument("--num-samples", type=int, default=400, help="of each kind")
    main(parser.parse_args())
