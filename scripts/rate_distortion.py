"""Known answer of the first stage: a linear β-VAE of Gaussian data is reverse water-filling.

    python scripts/rate_distortion.py    # three minutes for each water level, one core

Trains `Autoencoding` with squared error on `builtin:gaussian`, an AutoencoderKL whose encoder and decoder are one matrix
each, at several KL weights w: its water level is θ = w/2. Distortion (of draws from the posterior, on data that training
has not seen), rate and the directions that have not collapsed stand beside the closed form of
`ldmprobe.reverse_water_filling`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ldmprobe import Autoencoding, Originals, probe_reconstruction, reverse_water_filling
from ldmprobe.data.builtin import gaussian_spectrum, load_builtin
from study.training import bare_trainer

SIZE = 4  # pixels of an image's side: D = 16 directions
BATCH_SIZE = 256


class Linear(nn.Module):
    """A matrix from what comes in, flattened, to this shape."""

    def __init__(self, entries: int, *shape: int) -> None:
        super().__init__()
        self.matrix, self.shape = nn.Linear(entries, math.prod(shape)), shape

    def forward(self, x: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        return self.matrix(x.flatten(1)).unflatten(1, self.shape)


def linear_autoencoder() -> AutoencoderKL:
    """One latent entry for each pixel, at one place."""
    pixels, levels = SIZE**2, 1 + int(math.log2(SIZE))
    network = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=pixels,
        block_out_channels=(4,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=SIZE,
    )
    network.encoder, network.decoder = Linear(pixels, 2 * pixels, 1, 1), Linear(pixels, 1, SIZE, SIZE)
    return network


class Shuffled(IterableDataset[dict[str, Tensor]]):
    """Batches of images in ever new orders, without end."""

    def __init__(self, images: Tensor, seed: int) -> None:
        self.images, self.seed = images, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            for chosen in torch.randperm(len(self.images), generator=generator).split(BATCH_SIZE):
                yield {"image": self.images[chosen]}


def train(theta: float, images: Tensor, steps: int, seed: int) -> Autoencoding:
    torch.manual_seed(seed)
    module = Autoencoding(
        linear_autoencoder(),
        reconstruction="mse",
        kl_weight=2 * theta,
        optimizer=partial(torch.optim.Adam, lr=3e-3),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps),
        ema_decay=0.999,
        seed=seed,
    )
    bare_trainer(steps).fit(module, DataLoader(Shuffled(images, seed), batch_size=None))
    return module


@torch.no_grad()
def measured(module: Autoencoding, training: Tensor, fresh: Tensor) -> tuple[float, float, int]:
    """Return distortion per image, rate in nats per image, and the number of active entries."""
    model = replace(module.autoencoder_model(), image_shape=tuple(fresh.shape[1:]))
    torch.manual_seed(0)
    drawn = model.decode(model.posterior(fresh).sample())
    distortion = (drawn - fresh).square().flatten(1).sum(1).mean()
    scalars = probe_reconstruction(model, [fresh], Originals.of([training], [fresh], 1), batch_size=5000).scalars
    return float(distortion), scalars["kl_nats"] * SIZE**2, round(scalars["active_entries"])


def gaussian_images(number: int, seed: int) -> Tensor:
    rows = load_builtin("gaussian", channels=1, size=SIZE, num_images=number, seed=seed)
    return torch.from_numpy(rows.with_format("numpy")["image"][:])


def main() -> int:
    """0: within 2 % of the distortion and 3 % of the rate, and with the directions predicted; 1: not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theta", type=float, nargs="+", default=[0.07, 0.27, 0.34], help="water levels")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    spectrum = torch.from_numpy(gaussian_spectrum(SIZE)).flatten()

    images, fresh = gaussian_images(40_000, args.seed), gaussian_images(20_000, args.seed + 1)
    print("| θ | distortion | predicted | | rate, nats | predicted | | active | predicted |\n|---" + "|---" * 8 + "|")
    good = True
    for theta in args.theta:
        distortion, rate, active = measured(train(theta, images, args.steps, args.seed), images, fresh)
        best = reverse_water_filling(spectrum, theta)
        expected, nats, kept = float(best.distortion.sum()), float(best.rate.sum()), int(best.active.sum())
        off = distortion / expected - 1, rate / nats - 1
        good &= abs(off[0]) <= 0.02 and abs(off[1]) <= 0.03 and active == kept
        print(
            f"| {theta:g} | {distortion:.4f} | {expected:.4f} | {off[0]:+.1%} | {rate:.4f} | {nats:.4f} | {off[1]:+.1%} "
            f"| {active} | {kept} |",
            flush=True,
        )
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
