"""Data whose exact denoiser is known in closed form, Gaussian or not, and models of it that can be probed.

Shared by bench_soundness.py, bench_verdict.py and tests.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses import MarginalGap, StepKL
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from ldmprobe.training.latent_diffusion import stable_diffusion_scheduler

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(z_t, t) → ε."""

SPECTRA = ("1/f²", "1/f² in the pixels' own order", "white", "steep", "half without")
SHAPES = ((1, 8, 8), (3, 8, 8), (1, 16, 16))


class PerfectDenoiser(nn.Module):
    """The exact denoiser of N(0, U diag(λ) Uᵀ): ε, or the velocity of flow matching."""

    def __init__(self, directions: Tensor, variance: Tensor, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.directions, self.variance = nn.Parameter(directions), nn.Parameter(variance)
        self.schedule = schedule

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        flow = self.schedule.prediction.name == "flow"
        if flow:  # is told T σ
            sigma = float(t[0]) / self.schedule.num_timesteps
            alpha = 1 - sigma
        else:
            alpha, sigma = (float(level.flatten()[0]) for level in self.schedule.levels(t[:1], z_t[:1]))
        along = (z_t.flatten(1) @ self.directions) / (alpha**2 * self.variance + sigma**2)
        predicted = (sigma - alpha * self.variance) * along if flow else sigma * along
        return (predicted @ self.directions.T).view_as(z_t)


def perfect_data(spectrum: str, shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Eigenvectors, in columns, and eigenvalues, with mean 1: turned at random, but for one spectrum."""
    d = int(np.prod(shape))
    rank = torch.arange(1, d + 1, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(shape[1]), torch.arange(shape[2]), indexing="ij")
    frequency = 1 / (1 + torch.hypot(rows.double(), columns.double())) ** 2
    variance = {
        "white": torch.ones(d, dtype=torch.float64),
        "steep": rank**-1.5,
        "half without": (rank <= d / 2).double(),
    }.get(spectrum, frequency.expand(shape).flatten())
    variance = variance / variance.mean()
    if spectrum.endswith("order"):
        return torch.eye(d, dtype=torch.float64), variance
    noise = torch.randn(d, d, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)
    return torch.linalg.qr(noise)[0], variance


def perfect_model(
    spectrum: str, shape: tuple[int, ...], per_dimension: float, seed: int, num_draws: int = 512, flow: bool = False
) -> tuple[DiffusionModel, HeldOut, LatentStatistics]:
    """A perfect denoiser, held-out latents, and a reference of so many latents per dimension."""
    directions, variance = perfect_data(spectrum, shape, seed)
    d = len(variance)
    generator = torch.Generator().manual_seed(seed)

    def latents(n: int) -> Tensor:
        z = torch.randn(n, d, generator=generator, dtype=torch.float64) * variance.sqrt()
        return (z @ directions.T).view(n, *shape)

    reference = LatentStatistics.fit(latents(max(8, round(per_dimension * d))))
    schedule = as_schedule(FlowMatchEulerDiscreteScheduler() if flow else stable_diffusion_scheduler())
    model = DiffusionModel(PerfectDenoiser(directions, variance, schedule), schedule, shape)
    return model, HeldOut(latents(num_draws), {}), reference


def perfect_probes(
    spectrum: str, shape: tuple[int, ...], per_dimension: float, seed: int, num_draws: int = 512, flow: bool = False
) -> tuple[ProbeRecord, ProbeRecord]:
    """Denoising and DDIM probe of a perfect denoiser, beside a reference of so many latents per dimension."""
    model, held_out, reference = perfect_model(spectrum, shape, per_dimension, seed, num_draws, flow)
    denoising = probe_denoising(model, held_out, reference, num_draws, seed=seed)
    sampled = probe_sampling(model, reference, Sampling(256, 25, seed=seed), analyses=[StepKL(), MarginalGap()])
    return denoising, sampled


CLUSTERS_SHAPE = (3, 8, 8)


class Clusters:
    """A mixture of Gaussians with one covariance, whose exact denoiser is known and is not linear."""

    def __init__(self, number: int, generator: torch.Generator) -> None:
        d = int(np.prod(CLUSTERS_SHAPE))
        self.basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        self.variance = 1.5 / torch.arange(1, d + 1, dtype=torch.float64) ** 0.8 + 0.02
        self.means = 1.2 * self.variance.sqrt() * torch.randn(number, d, generator=generator, dtype=torch.float64)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return self.of_clusters(torch.randint(len(self.means), (n,), generator=generator), generator)

    def of_clusters(self, cluster: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a latent of each of these clusters (N,)."""
        n = len(cluster)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return ((self.means[cluster] + self.variance.sqrt() * noise) @ self.basis.T).float().view(n, *CLUSTERS_SHAPE)

    def denoise(self, z: Tensor, alpha: float, sigma: float, first: int = 0) -> tuple[Tensor, Tensor]:
        """E[ε|z] and the likeliest cluster, of the data without the clusters before ``first``."""
        posterior = self.posterior(z, alpha, sigma, first)
        return self.denoise_knowing(posterior, z, alpha, sigma, first), posterior.argmax(1)

    def posterior(self, z: Tensor, alpha: float, sigma: float, first: int = 0) -> Tensor:
        """p(cluster|z), (N, K)."""
        centered, total = self._centered(z, alpha, sigma, first)
        return (-0.5 * (centered**2 / total).sum(-1)).softmax(-1)

    def denoise_knowing(self, known: Tensor, z: Tensor, alpha: float, sigma: float, first: int = 0) -> Tensor:
        """E[ε|z] where the probabilities of the clusters are ``known``, (N, K)."""
        centered, total = self._centered(z, alpha, sigma, first)
        epsilon = sigma * (known[..., None] * centered).sum(1) / total
        return (epsilon @ self.basis.T).float().view_as(z)

    def _centered(self, z: Tensor, alpha: float, sigma: float, first: int) -> tuple[Tensor, Tensor]:
        """z less each cluster's mean, along the basis (N, K, D), and the variance of that (D,)."""
        centered = (z.flatten(1).double() @ self.basis)[:, None] - alpha * self.means[first:]
        return centered, alpha**2 * self.variance + sigma**2

    def linear(self, z: Tensor, alpha: float, sigma: float) -> Tensor:
        mean = self.means.mean(0)
        covariance = torch.diag(self.variance) + torch.cov(self.means.T, correction=0)
        total = alpha**2 * covariance + sigma**2 * torch.eye(len(mean), dtype=torch.float64)
        epsilon = sigma * torch.linalg.solve(total, (z.flatten(1).double() @ self.basis - alpha * mean).T).T
        return (epsilon @ self.basis.T).float().view_as(z)


class ClusterDenoiser(nn.Module):
    """The exact denoiser of clusters, at a schedule's timesteps."""

    def __init__(self, data: Clusters, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.data, self.schedule = data, schedule
        self.place = nn.Parameter(torch.zeros(1))  # says on which device the model is

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        return self.data.denoise(z_t, *self.levels(t))[0]

    def levels(self, t: Tensor) -> tuple[float, float]:
        return float(self.schedule.alpha[int(t[0])]), float(self.schedule.sigma[int(t[0])])

    def instead(self, fault: str) -> Denoise | None:
        """What answers in its place, for the faults that only clusters can have."""
        match fault.split():
            case ["one", "cluster", "×", size]:
                return lambda z, t: self._one_scaled(z, t, float(size))
            case ["one", "cluster", "forgotten"]:
                return lambda z, t: self.data.denoise(z, *self.levels(t), first=1)[0]
            case ["replaced", "by", "linear"]:
                return lambda z, t: self.data.linear(z, *self.levels(t))
        return None

    def _one_scaled(self, z: Tensor, t: Tensor, size: float) -> Tensor:
        epsilon, cluster = self.data.denoise(z, *self.levels(t))
        return torch.where((cluster == 0).view(-1, 1, 1, 1), size * epsilon, epsilon)


class ClassDenoiser(ClusterDenoiser):
    """The exact denoiser of clusters that is told which one it is, or, by the number K, that it is any of the K."""

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        number, levels = len(self.data.means), self.levels(t)
        told = nn.functional.one_hot(condition["class_labels"], number + 1)
        known = torch.where(told[:, -1:] == 1, self.data.posterior(z_t, *levels), told[:, :-1].double())
        return self.data.denoise_knowing(known, z_t, *levels)
