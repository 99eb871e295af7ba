"""Faults put into denoisers on purpose, and networks trained on real 8×8 latents to put them into.

Shared by bench_soundness.py, bench_verdict.py and bench_memorization.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.timesteps import StarvedBand, TimestepSampler, UniformTimesteps
from ldmprobe.models.codec import LatentCodec
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics, encode_images
from ldmprobe.training.ema import EMA
from ldmprobe.training.latent_diffusion import stable_diffusion_scheduler
from study.training import descend, small_unet

FAULT_BAND = (200, 500)  # of 1,000 timesteps
STARVED = {"starved early": (700, 1000), "starved middle": (200, 500), "starved late": (0, 60)}
OFTEN = 0.01  # are these drawn, of how often others are


class Planted(nn.Module):
    """A denoiser with a fault in a band of timesteps.

    Args:
        healthy: (z_t, t) → ε.
        fault: "none", or one of those below, such as "scaled by 1.05".
        instead: what answers in the band in its place, where the fault is another denoiser.
    """

    def __init__(
        self, healthy: nn.Module, fault: str, instead: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.healthy, self.fault, self.instead = healthy, fault, instead
        self.noise = torch.Generator().manual_seed(9)

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        low, high = FAULT_BAND
        inside = low <= int(t[0]) < high
        if inside and self.instead is not None:
            return self.instead(z_t, t)
        return self.distorted(z_t, t) if inside else self.healthy(z_t, t)

    def distorted(self, z_t: Tensor, t: Tensor) -> Tensor:
        if self.fault.startswith("time + "):
            return self.healthy(z_t, t + int(self.fault.split()[-1]))
        epsilon = self.healthy(z_t, t)
        match self.fault.split():
            case ["scaled", "by", size]:
                return float(size) * epsilon
            case ["shifted", "by", size]:
                return epsilon + float(size)
            case ["one", "channel", "×", size]:
                return torch.cat([float(size) * epsilon[:, :1], epsilon[:, 1:]], 1)
            case ["one", "channel", "leaks"]:
                return torch.cat([epsilon[:, :1] + 0.1 * epsilon[:, 1:2], epsilon[:, 1:]], 1)
            case ["noise", "added"]:
                return epsilon + 0.1 * torch.randn(epsilon.shape, generator=self.noise)
            case ["blurred"]:
                return 0.9 * epsilon + 0.1 * nn.functional.avg_pool2d(epsilon, 3, 1, 1, count_include_pad=False)
            case ["none"]:
                return epsilon
        raise ValueError(f"no fault is called {self.fault!r}")


class Epsilon(nn.Module):
    """A diffusers U-Net that predicts ε, as a function of z_t and t alone."""

    def __init__(self, network: UNet2DModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        return self.network(z_t, t).sample


def timesteps(starved: str = "") -> TimestepSampler:
    """Return evenly drawn timesteps, but for one of ``STARVED``."""
    return StarvedBand(*STARVED[starved], OFTEN) if starved in STARVED else UniformTimesteps()


def training(
    latents: Tensor, seed: int, steps: int, starved: str = "", width: int = 32
) -> Iterator[tuple[int, Epsilon, float]]:
    """Train a small U-Net; yield the step, the weights' moving average, which goes on changing, and the loss: before
    the first step, and after each.

    Args:
        starved: one of ``STARVED``, whose timesteps are drawn a hundred times less often.
        width: of the U-Net.
    """
    schedule, channels = as_schedule(stable_diffusion_scheduler()), latents.shape[1]
    torch.manual_seed(seed)
    network, sampler = small_unet(channels, width), timesteps(starved)
    ema = EMA(network, 0.995)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    average = Epsilon(ema.network)
    yield 0, average, float("nan")
    for step in range(1, steps + 1):
        z0 = latents[torch.randint(len(latents), (64,))]
        t = sampler(64, schedule)
        noise = torch.randn_like(z0)
        loss = (network(schedule.add_noise(z0, noise, t), t).sample - noise).pow(2).mean()
        descend(optimizer, loss, network)
        decay.step()
        ema.update(network)
        yield step, average, float(loss.detach())


def is_earlier(step: int, steps: int) -> bool:
    """Whether this is the step whose weights a frozen band, or a stale average, has kept."""
    return step == int(0.3 * steps) + 1


def real_latents(dataset: str, image_column: str = "image") -> tuple[Tensor, HeldOut, LatentStatistics]:
    """8×8 latents or pixels: digits through the shipped codec, any other data as pixels."""
    codec = LatentCodec("builtin:digits") if dataset == "digits" else LatentCodec()
    kwargs = {"size": 8, "num_images": 6000} if dataset == "shapes" else {}
    name = f"builtin:{dataset}" if dataset in ("digits", "shapes") else dataset
    column = "image" if dataset in ("digits", "shapes") else image_column
    data = ImageData(name, kwargs, image_column=column, image_size=32 if dataset == "digits" else 8, check_rows=5)
    data.setup()
    latents = encode_images(codec, images(data.reference_batches(20_000)))
    held = encode_images(codec, images(data.reference_batches(1024, held_out=True)))
    scale = latents.std()
    return latents / scale, HeldOut(held / scale, {}), LatentStatistics.fit(latents[:4096] / scale)


def images(batches: Iterator[dict[str, Any]]) -> Iterator[Tensor]:
    return (batch["image"] for batch in batches)
