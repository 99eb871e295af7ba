"""Gaussian data whose every moment is known, and how two records are compared."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from ldmprobe.analysis.basis import LatentBasis, Rotation
from ldmprobe.analysis.pca import PCABasis
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.ideal_denoisers import Memorizer
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.probe import Ranks
from tests.helpers import gaussian_model


class ScaledBand(nn.Module):
    """A denoiser whose ε is ``factor`` times too large at timesteps in [start, stop)."""

    def __init__(self, network: nn.Module, start: int, stop: int, factor: float = 1.5) -> None:
        super().__init__()
        self.network, self.start, self.stop, self.factor = network, start, stop, factor

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        inside = ((t >= self.start) & (t < self.stop)).view(-1, 1, 1, 1)
        epsilon = self.network(z_t, t, condition)
        return torch.where(inside, self.factor * epsilon, epsilon)


def faulty(start: int, stop: int, factor: float = 1.5) -> DiffusionModel:
    """``gaussian_model()`` with such a band."""
    model = gaussian_model()
    model.network = ScaledBand(model.network, start, stop, factor)
    return model


def copy_machine(latents: Tensor) -> DiffusionModel:
    """The optimal denoiser of the latents themselves."""
    shape = tuple(latents.shape[1:])
    schedule = gaussian_model(shape).schedule
    return DiffusionModel(Memorizer(latents, schedule), schedule, shape)


def clusters(n: int, seed: int) -> Tensor:
    """Latents (n, 1, 4, 4) in four clusters, far from Gaussian."""
    generator = torch.Generator().manual_seed(7)
    means = torch.randn(4, 1, 4, 4, generator=generator)
    return means[torch.arange(n) % 4] + 0.05 * torch.randn(n, 1, 4, 4, generator=generator.manual_seed(seed))


class WithDropout(nn.Module):
    """A denoiser that answers otherwise in train mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.dropout = network, nn.Dropout(0.5)

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.dropout(self.network(z_t, t, condition))


class GaussianX0(nn.Module):
    """The exact posterior mean of ε and x_0 given z, restated as v or flow velocity, for every level α = 0 included.

    E[ε|z] = σ (z − αμ)/v and E[x_0|z] = μ + αλ (z − αμ)/v, v = α²λ + σ². Flow matching is told T·σ, not a timestep.
    """

    def __init__(self, mean: Tensor, variance: Tensor, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.mean, self.variance, self.schedule = nn.Parameter(mean), nn.Parameter(variance), schedule

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        flow = self.schedule.prediction.name == "flow"
        if flow:
            sigma = (t.to(z_t.dtype) / self.schedule.num_timesteps).view(-1, 1, 1, 1)
            alpha = 1 - sigma
        else:
            alpha, sigma = self.schedule.levels(t, z_t)
        centered = (z_t - alpha * self.mean) / (alpha**2 * self.variance + sigma**2)
        epsilon, x0 = sigma * centered, self.mean + alpha * self.variance * centered
        return epsilon - x0 if flow else alpha * epsilon - sigma * x0


def flow_model(shift: float = 1.0) -> DiffusionModel:
    """A perfect flow-matching model of the same data as ``gaussian_model()``."""
    like, schedule = gaussian_model(), as_schedule(FlowMatchEulerDiscreteScheduler(shift=shift))
    network = GaussianX0(like.network.mean.detach(), like.network.variance.detach(), schedule)
    return DiffusionModel(network, schedule, like.latent_shape)


def v_model(**scheduler: Any) -> DiffusionModel:
    """A perfect v-prediction model of the same data as ``gaussian_model()``."""
    like = gaussian_model(prediction_type="v_prediction", **scheduler)
    network = GaussianX0(like.network.mean.detach(), like.network.variance.detach(), like.schedule)
    return DiffusionModel(network, like.schedule, like.latent_shape)


def draw(model: DiffusionModel, n: int, seed: int = 1) -> Tensor:
    """Latents (n, C, H, W) of the data that ``model`` is perfect for."""
    mean, variance = model.network.mean.detach(), model.network.variance.detach()
    noise = torch.randn(n, *mean.shape, generator=torch.Generator().manual_seed(seed), dtype=mean.dtype)
    return mean + variance.sqrt() * noise


def exact_reference(model: DiffusionModel) -> LatentStatistics:
    """As if fitted on infinitely many latents: their directions are the axes, in falling order of variance."""
    mean, variance = model.network.mean.detach().flatten(), model.network.variance.detach().flatten()
    eye = torch.eye(len(mean), dtype=torch.float64)
    pca = PCABasis(mean.float(), eye[:2].float(), variance[:2], float(variance.sum()))
    cloud = pca.project(draw(model, 512).flatten(1).float())
    basis = LatentBasis.known(Rotation("pca", model.latent_shape, eye), mean, variance)
    return LatentStatistics(basis, pca, cloud, 10**9)


def on_ranks(world_size: int, work: Callable[[Ranks], ProbeRecord]) -> list[ProbeRecord]:
    """What ``work`` returns on each of several ranks: threads that wait for each other at every sum."""
    barrier = threading.Barrier(world_size, timeout=30)
    parts: list[Any] = [None] * world_size

    def rank_of(rank: int) -> Ranks:
        def all_reduce_sum(tensor: Tensor) -> Tensor:
            parts[rank] = tensor
            barrier.wait()
            total = torch.stack(parts).sum(0)
            barrier.wait()
            return total

        return Ranks(rank, world_size, all_reduce_sum)

    def run(rank: int) -> ProbeRecord | Exception:
        try:
            return work(rank_of(rank))
        except Exception as error:  # noqa: BLE001 (raised below, in the calling thread)
            barrier.abort()
            return error

    with ThreadPoolExecutor(world_size) as pool:
        results = list(pool.map(run, range(world_size)))
    errors = [result for result in results if isinstance(result, Exception)]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # the one that broke the barrier first
    return results


def assert_same_record(found: ProbeRecord, expected: ProbeRecord, **tolerance: float) -> None:
    """Everything but the time; numbers exactly, or within ``tolerance``."""
    assert (found.probe, found.step) == (expected.probe, expected.step)
    assert (found.provenance, found.fingerprints) == (expected.provenance, expected.fingerprints)
    assert found.images == expected.images
    numbers = numbers_of(found), numbers_of(expected)
    assert list(numbers[0]) == list(numbers[1])
    for name in numbers[0]:
        np.testing.assert_allclose(numbers[0][name], numbers[1][name], err_msg=name, **{"rtol": 0.0, **tolerance})


def numbers_of(record: ProbeRecord) -> dict[str, np.ndarray]:
    """Every number of a record, by a name that says where it was."""
    numbers = {name: np.array(value) for name, value in record.scalars.items()}
    for name, each in {**record.curves, **record.per_sample}.items():
        for part, value in vars(each).items():
            if value is not None:
                numbers[f"{name}.{part}"] = np.asarray(value)
    for name, scatters in record.scatters.items():
        for k, scatter in enumerate(scatters):
            numbers[f"{name}.{k}.level"] = np.array([scatter.timestep, scatter.log_snr])
            numbers[f"{name}.{k}.xy"] = scatter.xy
    return numbers
