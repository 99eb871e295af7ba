"""A user's own parts, one class for each thing that can be added to ldmprobe, with imports of its public names
alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import ldmprobe


class LinearLogSNR(ldmprobe.NoiseSchedule):
    """A noise process: λ falls evenly from 8 to −8, α² = sigmoid(λ)."""

    def __init__(self, num_timesteps: int = 100) -> None:
        log_snr = torch.linspace(8, -8, num_timesteps, dtype=torch.float64)
        super().__init__(log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt(), TwiceTheNoise())


class TwiceTheNoise(ldmprobe.Prediction):
    """A kind of prediction: 2 ε."""

    name = "twice_the_noise"

    def target(self, x0, epsilon, alpha, sigma):
        return 2 * epsilon

    def x0_and_epsilon(self, answer, z_t, alpha, sigma):
        return (z_t - sigma * answer / 2) / alpha, answer / 2

    def log_epsilon_error_scale(self, log_snr):
        return torch.full_like(log_snr, -math.log(4))


class AdamsBashforth(ldmprobe.Sampler):
    """A sampler: DDIM's step with ε extrapolated from the last two answers, 3/2 ε_k − 1/2 ε_{k−1}."""

    name = "adams-bashforth"

    def program(self, grid):
        steps = []
        for k in range(grid.num_steps):
            alpha_t, sigma_t, alpha_s, sigma_s = (
                float(level[k]) for level in (grid.alpha_t, grid.sigma_t, grid.alpha_s, grid.sigma_s)
            )
            mix = {"epsilon": 1.0} if k == 0 else {"epsilon": 1.5, "before": -0.5}
            steps.append(
                ldmprobe.SamplerStep(
                    (
                        ldmprobe.Denoise(alpha_t, sigma_t, float(grid.timesteps[k])),
                        ldmprobe.Combine("slope", mix),
                        ldmprobe.Combine("before", {"epsilon": 1.0}),
                        ldmprobe.Combine("z", {"z": alpha_s / alpha_t, "slope": sigma_s - sigma_t * alpha_s / alpha_t}),
                    )
                )
            )
        return steps


class NoisyHalf(ldmprobe.Guidance):
    """A guidance: classifier-free at scale 2, where the network is told at least T/2."""

    provenance = {"guidance": "noisy half"}  # noqa: RUF012 (plain values)
    shifts = True

    def guide(self, answer, model):
        null = model.conditioning.null(1, model.device)

        def guided(z_t, asked, condition):
            conditional = answer(z_t, asked, condition)
            if float(asked.timesteps[0]) < 50:
                return conditional
            none = {name: value.expand_as(condition[name]) for name, value in null.items()}
            return 2 * conditional - answer(z_t, asked, none)

        return guided

    def check(self, model):
        """Nothing is needed."""


class Middle(ldmprobe.LossWeighting):
    """A weighting: exp(−λ²/50)."""

    def log_weight(self, log_snr):
        return -(log_snr**2) / 50


@dataclass(frozen=True)
class AngleColumn(ldmprobe.Column):
    """A column: an angle in degrees, in batches (N,) in radians."""

    column: str = "degrees"
    name: str = "angle"

    def read(self, value, reading):
        return torch.tensor(math.radians(value), dtype=torch.float32)

    def kept(self, value, reading):
        return value

    def restored(self, kept, rng):
        return self.read(kept, None)


class Direction(ldmprobe.Conditioning):
    """A conditioning: the direction of an angle as two planes beside z_t, all 0 for none."""

    columns = ("angle",)

    def from_batch(self, batch):
        self.check_columns(batch)
        return {"concat": self._planes(batch["angle"])}

    def for_samples(self, sample_ids):
        return {"concat": self._planes(sample_ids * 2 * math.pi / 16)}

    def null(self, num_samples, device):
        return {"concat": torch.zeros(num_samples, 2, 8, 8, device=device)}

    def _planes(self, angle):
        return torch.stack([angle.cos(), angle.sin()], dim=1)[:, :, None, None].float().expand(-1, 2, 8, 8)


class Reach(ldmprobe.Analysis):
    """An analysis with its Metric table: the root mean square of the latents after each step."""

    metrics = (
        ldmprobe.Metric("reach", "Reach of the latents", "How far <they> reach.", ideal=1.0, pool="mean", shown="headline"),
        ldmprobe.Metric("final_reach", "Reach of the samples", "After the last step.", shown="headline"),
    )  # fmt: skip

    def begin(self, trajectory):
        self.trajectory, self.values = trajectory, []

    def update(self, step):
        self.values.append(float(step.z_s.pow(2).mean().sqrt()))

    def finish(self):
        curve = self.trajectory.curve(np.array(self.values))
        return ldmprobe.Findings(scalars={"final_reach": self.values[-1]}, curves={"reach": curve})


def ramp(angle: float) -> np.ndarray:
    """An 8×8 picture that brightens in a direction, in [−1, 1]."""
    y, x = np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 8), indexing="ij")
    return (x * math.cos(angle) + y * math.sin(angle)) / 2**0.5


class Ramps(L.LightningDataModule):
    """A data source: ramps, made as they are asked for."""

    class _Rows(Dataset):
        def __init__(self, first: int, number: int) -> None:
            self.first, self.number = first, number

        def __len__(self):
            return self.number

        def __getitem__(self, i):
            angle = (self.first + i) * 0.1
            image = torch.from_numpy(ramp(angle))[None].float()
            return {"image": image, "angle": torch.tensor(angle), "index": self.first + i}

    def train_dataloader(self):
        return DataLoader(self._Rows(0, 256), batch_size=16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self._Rows(256, 64), batch_size=16)
