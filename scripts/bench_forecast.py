"""Does a forecast of the held-out bound come true? Fitted on the first halves of runs, judged on their second halves.

    python scripts/bench_forecast.py --out runs/forecast    (two minutes of one core)

Thirty runs of small perceptrons at a constant learning rate: three data sets (digits' latents, shapes of 8×8 pixels,
Gaussian data), two widths, five seeds with learning rates of their own. Each is probed twelve times, evenly; a forecast from the
first six says how far the bound falls until the twelfth, in total and in each band of log-SNR. The share of falls that
its 95 % interval covers is told beside the widths, and beside two simpler forecasts: that nothing falls any more, and
that the next half falls as far as the last did.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from known_denoisers import perfect_model
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.io.record import PerSample, ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import log_snr_grid
from ldmprobe.probing.denoising_record import ERRORS, PROBE
from ldmprobe.probing.draws import squared_errors
from ldmprobe.probing.forecast import forecast, measured_fall
from ldmprobe.probing.probe import evaluating
from ldmprobe.training.ema import EMA
from ldmprobe.training.latent_diffusion import stable_diffusion_scheduler
from planted_faults import Planted, real_latents
from study.training import descend

DATA = ("digits", "shapes", "gaussian")
WIDTHS, SEEDS, PROBES, DRAWS = (64, 256), 5, 12, 256
RATES = (1e-3, 2e-3, 4e-3, 1e-3, 2e-3)  # of the seeds


class Perceptron(nn.Module):
    """Predicts ε: what white data would have, σ z, and what two residual layers over the latent's entries add to it,
    shifted by an embedding of the timestep.
    """

    def __init__(self, dimension: int, width: int) -> None:
        super().__init__()
        self.time = nn.Linear(16, width)
        self.into, self.out = nn.Linear(dimension, width), nn.Linear(width, dimension)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.sigma = as_schedule(stable_diffusion_scheduler()).sigma.float()

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        phase = t.to(z_t.dtype)[:, None] / 1000 * torch.pi * torch.arange(8)
        hidden = self.into(z_t.flatten(1)) + self.time(torch.cat([phase.cos(), phase.sin()], 1))
        for layer in self.layers:
            hidden = hidden + layer(nn.functional.silu(hidden))
        sigma = self.sigma[t.long()].view(-1, 1, 1, 1)
        return sigma * z_t + self.out(nn.functional.silu(hidden)).view_as(z_t)


def latents_of(dataset: str) -> tuple[Tensor, Tensor]:
    """Return latents to train on, and held-out ones."""
    if dataset == "gaussian":
        latents = perfect_model("1/f²", (1, 8, 8), 4, 0, 4096 + DRAWS)[1].latents.float()
        return latents[DRAWS:], latents[:DRAWS]
    latents, held, _ = real_latents(dataset)
    return latents, held.latents[:DRAWS]


def probes(
    data: tuple[Tensor, Tensor], width: int, rate: float, seed: int, steps: int, every: int
) -> Iterator[ProbeRecord]:
    """Train at a constant rate; yield the errors of held-out draws, evenly over training."""
    latents, held = data
    schedule = as_schedule(stable_diffusion_scheduler())
    torch.manual_seed(seed)
    network = Perceptron(held[0].numel(), width)
    ema = EMA(network, 0.98)
    model = DiffusionModel(Planted(ema.network, "none"), schedule, tuple(held.shape[1:]))
    timesteps = log_snr_grid(model)
    image = torch.arange(DRAWS) % len(held)
    noise = sample_noise(list(range(DRAWS)), tuple(held.shape[1:]), 0, stream=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    for step in range(1, steps + 1):
        z0 = latents[torch.randint(len(latents), (64,))]
        t = torch.randint(1000, (64,))
        epsilon = torch.randn_like(z0)
        loss = (network(schedule.add_noise(z0, epsilon, t), t) - epsilon).pow(2).mean()
        descend(optimizer, loss, network)
        ema.update(network)
        if step % every == 0:
            with evaluating(model.modules):
                errors = squared_errors(model, held[image], noise, {}, timesteps, DRAWS)
            log_snr = schedule.log_snr[timesteps].numpy()
            known = {"num_draws": DRAWS, "num_images": len(held), "dimension": held[0].numel()}
            per_sample = {ERRORS: PerSample(timesteps.numpy(), log_snr, errors.T.numpy())}
            yield ProbeRecord(PROBE, step, per_sample=per_sample, provenance=known)


def trained(out: Path, steps: int) -> list[list[ProbeRecord]]:
    """Return the records of every run, read back where they are there already."""
    runs = []
    for dataset in DATA:
        data: tuple[Tensor, Tensor] | None = None
        for width in WIDTHS:
            for seed in range(SEEDS):
                store = RecordStore(out / f"{dataset}-{width}-{seed}")
                if len(store.paths()) < PROBES:
                    data = data or latents_of(dataset)
                    for record in probes(data, width, RATES[seed], seed, steps, steps // PROBES):
                        store.append(record)
                    print(store.folder.parent, flush=True)
                runs.append(store.read())
    return runs


def main(args: argparse.Namespace) -> None:
    runs = trained(args.out, args.steps)
    half = PROBES // 2
    print("\n| | forecasts | covered | median width ÷ fall | median error: forecast | no fall | as the last half |")
    print("|---|---|---|---|---|---|---|")
    for probe in (half, half + 2, PROBES - 1):
        rows = [_judged(records, half, probe) for records in runs]
        for name, part in (("bound", [row[-1:] for row in rows]), ("bands", [row[:-1] for row in rows])):
            table = np.concatenate(part)
            fall, value, lower, upper, again = table.T
            covered = ((lower <= fall) & (fall <= upper)).mean()
            errors = [np.median(np.abs(fall - other)) for other in (value, np.zeros_like(value), again)]
            width = np.median((upper - lower) / 2 / np.maximum(np.abs(fall), 1e-9))
            cells = " | ".join(f"{error:.3g}" for error in errors)
            print(
                f"| {name}, {(probe + 1) / half:.2f} × the steps | {len(table)} | {covered:.3f} | {width:.2g} | {cells} |"
            )


def _judged(records: list[ProbeRecord], half: int, probe: int) -> np.ndarray:
    """Return what fell, what was forecast with its interval, and what fell in the last half before: (bands + 1, 5)."""
    known, later = records[:half], records[probe]
    ahead = forecast(known, later.step)
    told = np.array([[each.nats, each.lower, each.upper] for each in ahead])
    again = measured_fall(known[half // 2 - 1], known[-1])
    return np.column_stack([measured_fall(known[-1], later), told, again])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs' records")
    parser.add_argument("--steps", type=int, default=1800, help="of each run")
    main(parser.parse_args())
