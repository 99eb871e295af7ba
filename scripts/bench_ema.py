"""Averages of weights made after training: are they those that were kept, and does the probe choose the right one?

    python scripts/bench_ema.py               (some five minutes of one core)
    python scripts/bench_ema.py --quick       (half a minute: that it runs, not what it says)

A small U-Net is trained on digits at a constant learning rate with PostHocEMA, and averages of other lengths are kept
beside. At each stop: how far the average made afterwards is from the one that was kept, relative to its norm, and to
its distance from the live weights; by how many nats it lowers the held-out bound; and its FID in features that no
training has seen, all from the same starting noises. The probe chooses by held-out errors, by these among averages within
one standard error of the lowest FID of samples of its own from other noises, and by that FID alone; each choice is
judged by FID against the best of all lengths.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from ldmprobe.callbacks import PostHocEMA
from ldmprobe.data.images import ImageData
from ldmprobe.features.classifier import FeatureNetwork
from ldmprobe.inference import real_latents, sample_images
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.pretrained.source import Source
from ldmprobe.probing.averages import BEST, probe_averages
from ldmprobe.probing.quality import frechet_distance
from ldmprobe.probing.real_features import RealFeatures
from ldmprobe.probing.sampling import Sampling
from ldmprobe.training.checkpoint.load import load_model
from ldmprobe.training.ema_snapshots import averaged_weights
from ldmprobe.training.latent_diffusion import LatentDiffusion
from ldmprobe.training.power_ema import PowerEMA
from study.training import bare_trainer, small_unet

WITH_FID = "errors, near its own lowest FID,"
LENGTHS = (0.03, 0.05, 0.08, 0.12, 0.16, 0.2)


class Directly(L.Callback):
    """Keeps averages of all lengths as they are at each stop, and the live weights."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.kept: dict[int, dict[float, Tensor]] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.averages = PowerEMA(pl_module.trained_network, LENGTHS)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.averages.update(pl_module.trained_network)
        if trainer.global_step % self.every == 0:
            live = flat(dict(pl_module.trained_network.named_parameters()))
            kept = {length: flat(weights) for length, weights in self.averages.weights.items()}
            self.kept[trainer.global_step] = kept | {0.0: live}


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].detach().flatten().clone() for name in sorted(weights)])


def train(folder: Path, seed: int, steps: int, stops: int) -> Directly:
    torch.manual_seed(seed)
    network = small_unet(2)
    codec, optimizer = LatentCodec("builtin:digits"), partial(torch.optim.AdamW, lr=2e-3)
    module = LatentDiffusion(network, codec, optimizer=optimizer, ema_decay=None, seed=seed)
    directly, every = Directly(steps // stops), max(1, steps // 30)
    saving = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=steps // stops, save_top_k=-1)
    own = {"default_root_dir": str(folder), "gradient_clip_val": 1.0, "enable_checkpointing": True}
    trainer = bare_trainer(steps, PostHocEMA(every_n_steps=every), directly, saving, **own)
    trainer.fit(module, ImageData("builtin:digits", image_size=32, batch_size=64))
    return directly


def main(args: argparse.Namespace) -> None:
    steps, number, draws = (60, 64, 32) if args.quick else (600, args.num_samples, 256)
    judge = FeatureNetwork("builtin:digits")
    data = ImageData("builtin:digits", image_size=32)
    data.setup()
    images = (batch["image"] for batch in data.reference_images(2000, held_out=False))
    known = RealFeatures.of(judge, images, torch.device("cpu"))
    real = known.features
    print("| seed | step | length | ÷ norm | ÷ distance from live | nats gained | FID |\n|---|---|---|---|---|---|---|")
    ends = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            directly = train(folder, seed, steps, args.stops)
            for step, kept in directly.kept.items():
                checkpoint = str(folder / "checkpoints" / f"step={step}.ckpt")
                live = load_model(checkpoint)
                held_out = real_latents(live, "builtin:digits", image_size=32).held_out

                def averaged(
                    length: float, checkpoint: str = checkpoint, live: DiffusionModel = live
                ) -> DiffusionModel:
                    return replace(live, network=load_model(Source(checkpoint, ema_length=length)).network)

                probe = partial(
                    probe_averages,
                    live,
                    {length: partial(averaged, length) for length in LENGTHS},
                    held_out,
                    num_draws=draws,
                    step=step,
                )
                own = Sampling(number, 20, batch_size=256, seed=1)
                records = {
                    "held-out errors": probe(),
                    WITH_FID: probe(real=known, feature_network=judge, sampling=own),
                }
                gains, fids = records["held-out errors"].curves["averages_bound_gain"].value, {}
                for length, gain in zip(LENGTHS, gains, strict=True):
                    made = flat(averaged_weights(checkpoint, length))
                    off = float((made - kept[length]).norm())
                    samples = sample_images(averaged(length), Sampling(number, 20, batch_size=256))
                    with torch.no_grad():
                        features = torch.cat([judge(part) for part in samples.clamp(-1, 1).split(64)])
                    fids[length] = frechet_distance(real, features)
                    norms = (off / float(kept[length].norm()), off / float((kept[length] - kept[0.0]).norm()))
                    print(
                        f"| {seed} | {step} | {length} | {norms[0]:.1e} | {norms[1]:.1e} | {gain:.2f} | "
                        f"{fids[length]:.3f} |",
                        flush=True,
                    )
                chosen = {by: record.scalars[BEST] for by, record in records.items()}
                by_fid = records[WITH_FID].curves["averages_fid"].value
                chosen["its own lowest FID"] = LENGTHS[int(by_fid.argmin())]
                ends += [_judged(f"seed {seed}, step {step}", by, length, fids) for by, length in chosen.items()]
    print("\n" + "\n".join(ends))


def _judged(when: str, by: str, chosen: float, fids: dict[float, float]) -> str:
    best = min(fids, key=fids.__getitem__)
    return (
        f"{when}: by {by} the probe chooses {chosen:g} (FID {fids[chosen]:.3f}); the best by FID is {best:g} "
        f"({fids[best]:.3f}): {fids[chosen] / fids[best] - 1:+.1%}."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--stops", type=int, default=2, help="how often training is looked at")
    parser.add_argument("--num-samples", type=int, default=512, help="for each FID")
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args())
