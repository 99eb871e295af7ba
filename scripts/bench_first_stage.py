"""CPU seconds per step of training a first stage, side by side: Autoencoding, a bare loop of the same losses, and two
separate forward passes with two optimizers, as latent-diffusion trains.

    python scripts/bench_first_stage.py            (three minutes of one core)

All have the same AutoencoderKL, perceptual loss, discriminator, adaptive weight, average and images. The bare loop takes
one backward pass, as Autoencoding does; what is between the two is Lightning and logging. latent-diffusion encodes and
decodes each batch twice, once for the autoencoder's step and once for the discriminator's. Each round measures all
three, one after another; ratios are taken within a round, and their median is told.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ldmprobe.data.images import ImageData
from ldmprobe.features.perceptual import PerceptualLoss
from ldmprobe.models.discriminator import PatchDiscriminator
from ldmprobe.training.adversarial import Adversarial
from ldmprobe.training.autoencoding import Autoencoding
from ldmprobe.training.ema import EMA
from study.training import bare_trainer

KL_WEIGHT, WEIGHT, PERCEPTUAL, WARM_UP = 1e-6, 0.5, 0.1, 2


def first_stage() -> AutoencoderKL:
    torch.manual_seed(0)
    widths = (16, 32, 48)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=3,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def discriminator(size: int) -> PatchDiscriminator:
    torch.manual_seed(1)
    return PatchDiscriminator(channels=3, image_size=size, width=32)


def adam(parameters: Iterator[nn.Parameter] | list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-4, betas=(0.5, 0.9))


def data(args: argparse.Namespace) -> ImageData:
    settings = {"size": args.size, "num_images": 500}
    return ImageData("builtin:shapes", dataset_kwargs=settings, batch_size=args.batch_size, check_rows=1)


class Clock(L.Callback):
    """CPU seconds of each batch, from one's end to the next one's."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append(time.process_time())


def ours(args: argparse.Namespace) -> float:
    module = Autoencoding(
        first_stage(),
        perceptual=PerceptualLoss("builtin:cifar10", PERCEPTUAL),
        adversarial=Adversarial(discriminator(args.size), WEIGHT),
        kl_weight=KL_WEIGHT,
    )
    clock = Clock()
    bare_trainer(args.steps + WARM_UP, clock).fit(module, data(args))
    return (clock.ends[-1] - clock.ends[WARM_UP - 1]) / args.steps


def timed(args: argparse.Namespace, step: Callable[[Tensor], None]) -> float:
    images = data(args)
    images.setup()
    ends = []
    for batch in itertools.islice(images.train_dataloader(), args.steps + WARM_UP):
        step(batch["image"])
        ends.append(time.process_time())
    return (ends[-1] - ends[WARM_UP - 1]) / args.steps


class Parts:
    """What the two loops have in common."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.network, self.judge = first_stage(), discriminator(args.size)
        self.perceptual, self.average = PerceptualLoss("builtin:cifar10"), EMA(self.network, 0.999)
        self.last = self.network.decoder.conv_out.weight

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return decoded images, their reconstruction loss, and the term of the KL."""
        posterior = self.network.encode(images).latent_dist
        decoded = self.network.decode(posterior.sample()).sample
        loss = (images - decoded).abs().mean() + PERCEPTUAL * self.perceptual(images, decoded)
        return decoded, loss, KL_WEIGHT * posterior.kl().mean() / images[0].numel()

    def weighed(self, loss: Tensor, term: Tensor) -> Tensor:
        norms = [torch.autograd.grad(part, self.last, retain_graph=True)[0].norm() for part in (loss, term)]
        return WEIGHT * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4) * term

    def hinge(self, images: Tensor, decoded: Tensor) -> Tensor:
        real, fake = self.judge(torch.cat([images, decoded.detach()])).chunk(2)
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def bare(args: argparse.Namespace) -> float:
    parts = Parts(args)
    optimizer = adam([*parts.network.parameters(), *parts.judge.parameters()])

    def step(images: Tensor) -> None:
        decoded, loss, kl = parts.reconstruct(images)
        constants = {name: parameter.detach() for name, parameter in parts.judge.named_parameters()}
        term = -torch.func.functional_call(parts.judge, constants, (decoded,)).mean()
        optimizer.zero_grad()
        (loss + kl + parts.weighed(loss, term) + parts.hinge(images, decoded)).backward()
        optimizer.step()
        parts.average.update(parts.network)

    return timed(args, step)


def twice(args: argparse.Namespace) -> float:
    parts = Parts(args)
    optimizers = adam(parts.network.parameters()), adam(parts.judge.parameters())

    def step(images: Tensor) -> None:
        parts.judge.requires_grad_(False)
        decoded, loss, kl = parts.reconstruct(images)
        optimizers[0].zero_grad()
        (loss + kl + parts.weighed(loss, -parts.judge(decoded).mean())).backward()
        optimizers[0].step()
        parts.average.update(parts.network)
        parts.judge.requires_grad_(True)
        with torch.no_grad():
            decoded = parts.network.decode(parts.network.encode(images).latent_dist.sample()).sample
        optimizers[1].zero_grad()
        parts.hinge(images, decoded).backward()
        optimizers[1].step()

    return timed(args, step)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="pixels on a side")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25, help="steps that are timed, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rounds = [tuple(loop(args) for loop in (ours, bare, twice)) for _ in range(args.rounds)]
    for name, seconds in zip(("Autoencoding", "bare loop", "two passes"), zip(*rounds, strict=True), strict=True):
        print(f"{name:>13}: {', '.join(f'{each:.3f}' for each in seconds)} CPU seconds a step")
    for name, of in (("bare loop", 1), ("two passes", 2)):
        ratios = [each[0] / each[of] for each in rounds]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"Autoencoding ÷ {name}: {statistics.median(ratios):.3f} ({spread})")
