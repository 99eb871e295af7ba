"""Which features should the calibration residual regress on? Power on starved bands against honesty on a linear
optimum.

    python scripts/residual_features.py HEALTHY_CHECKPOINT STARVED_CHECKPOINT

(the two runs of scripts/healthy_vs_starved.py). For each feature set: R at a few levels of both models, and of the
exact denoiser of Gaussian data with the same covariance, where anything above 0 would be a false alarm. Cross-fitted
over 8 folds of images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.inference import real_latents
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.probe import evaluating
from ldmprobe.training.checkpoint.load import load_model

FOLDS, DRAWS = 8, 1024
TIMESTEPS = (924, 680, 354, 157, 49, 12, 2)
Features = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z, ε_θ, x̂_0), each (N, D) in the basis → (N, D, K): K features of each direction."""


def ones(z: Tensor) -> Tensor:
    return torch.ones_like(z)


def shared(columns: Tensor, dimension: int) -> Tensor:
    """The same K features (N, K) for every direction."""
    return columns[:, None, :].expand(-1, dimension, -1)


def neighbors(z: Tensor, p: Tensor, count: int) -> Tensor:
    return torch.cat(
        [torch.stack([ones(z), z, p], -1), shared(torch.cat([z[:, :count], p[:, :count]], 1), z.shape[1])], -1
    )


def random_map(z: Tensor, p: Tensor, count: int) -> Tensor:
    weight = torch.randn(2 * z.shape[1], count, generator=torch.Generator().manual_seed(0), dtype=z.dtype)
    hidden = torch.tanh(torch.cat([z, p], 1) @ weight / (2 * z.shape[1]) ** 0.5)
    return torch.cat([torch.stack([ones(z), z, p], -1), shared(hidden, z.shape[1])], -1)


SETS: dict[str, Features] = {
    "z_i, no constant": lambda z, p, x: z[..., None],
    "ε_i, no constant": lambda z, p, x: p[..., None],
    "1, z_i, ε_i (shipped)": lambda z, p, x: torch.stack([ones(z), z, p], -1),
    "1, z_i, ε_i, x̂0_i clipped": lambda z, p, x: torch.stack([ones(z), z, p, x.clamp(-3, 3)], -1),
    "1, z_i, ε_i, squares": lambda z, p, x: torch.stack([ones(z), z, p, z * z, p * p], -1),
    "1, z_i, ε_i, cubes": lambda z, p, x: torch.stack([ones(z), z, p, z**3, p**3], -1),
    "+ 4 leading directions of z, ε": lambda z, p, x: neighbors(z, p, 4),
    "+ 16 leading directions of z, ε": lambda z, p, x: neighbors(z, p, 16),
    "+ 16 random features": lambda z, p, x: random_map(z, p, 16),
    "+ 64 random features": lambda z, p, x: random_map(z, p, 64),
}


class LinearOptimum(nn.Module):
    """The exact denoiser of Gaussian data with the reference's moments."""

    def __init__(self, reference: LatentStatistics, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.basis, self.schedule = reference.basis, schedule
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        alpha, sigma = float(self.schedule.alpha[int(t[0])]), float(self.schedule.sigma[int(t[0])])
        centered = self.basis.rotate(z_t.double()) - alpha * self.basis.mean
        epsilon = sigma * centered / (alpha**2 * self.basis.variance + sigma**2)
        return (epsilon @ self.basis.rotation.matrix).view_as(z_t).to(z_t.dtype)


def gaussian_latents(reference: LatentStatistics, count: int) -> Tensor:
    basis = reference.basis
    z = torch.randn(count, len(basis.mean), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return ((basis.mean + z * basis.variance.sqrt()) @ basis.rotation.matrix).view(count, *basis.shape).float()


def residuals(model: DiffusionModel, held_out: HeldOut, reference: LatentStatistics, timestep: int) -> list[float]:
    image = torch.arange(DRAWS) % len(held_out.latents)
    z0 = held_out.latents[image]
    noise = sample_noise(range(DRAWS), tuple(z0.shape[1:]), seed=0, stream=1)
    alpha, sigma = float(model.schedule.alpha[timestep]), float(model.schedule.sigma[timestep])
    z_t = alpha * z0 + sigma * noise
    with evaluating(model.modules):
        x0, epsilon = model.x0_and_epsilon(
            z_t, timestep, alpha, sigma, {name: value[image] for name, value in held_out.condition.items()}
        )
    e, z, p, x = (reference.basis.rotate(value.double()) for value in (noise - epsilon, z_t, epsilon, x0))
    return [cross_fitted(e, features(z, p, x), image % FOLDS) for features in SETS.values()]


def cross_fitted(e: Tensor, features: Tensor, fold: Tensor) -> float:
    explained = 0.0
    for f in range(FOLDS):
        train, test = fold != f, fold == f
        x, y = features[train].movedim(1, 0), e[train].T[..., None]
        gram = x.mT @ x
        ridge = 1e-6 * torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1).clamp(min=1e-12))
        beta = torch.linalg.solve(gram + ridge, x.mT @ y)
        left = e[test].T[..., None] - features[test].movedim(1, 0) @ beta
        explained += float((e[test] ** 2).sum() - (left**2).sum())
    return explained / float((e**2).sum())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("healthy")
    parser.add_argument("starved")
    args = parser.parse_args()
    models = {name: load_model(path) for name, path in (("healthy", args.healthy), ("starved", args.starved))}
    real = real_latents(models["healthy"], "builtin:digits", label_column="label", image_size=32)
    schedule = models["healthy"].schedule
    models["linear optimum"] = DiffusionModel(
        LinearOptimum(real.reference, schedule), schedule, models["healthy"].latent_shape
    )
    print(f"| model | features | {' | '.join(f't={t}' for t in TIMESTEPS)} |\n|---|---|{'---|' * len(TIMESTEPS)}")
    for name, model in models.items():
        data = HeldOut(gaussian_latents(real.reference, 180), {}) if name == "linear optimum" else real.held_out
        table = [residuals(model, data, real.reference, t) for t in TIMESTEPS]
        for k, features in enumerate(SETS):
            print(f"| {name} | {features} | {' | '.join(f'{row[k]:+.3f}' for row in table)} |", flush=True)
