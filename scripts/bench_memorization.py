"""When does a network begin to know its training images by heart? The onset of memorization over their number.

    python scripts/bench_memorization.py --out runs/memorization    (half an hour of one core)

A small U-Net learns the latents of n digits, and Gaussian data without end, each row of which is seen once. Onset is
the step at which M over all noise levels (``probe_memorization``) comes to .2, interpolated between probes on a
geometric grid. The learning rate is constant from the first step, and what is probed is a power-function average, whose
length is a share of the steps so far: a schedule, or an average of so many steps, has a time of its own that does not
grow with n. The exponent is the slope of log onset over log n by least squares, of each seed by itself; its interval is
Student's t over seeds, which have other digits, weights and noise. Records that are there already are read back.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.stats import linregress
from torch import Tensor

from bench_forecast import latents_of
from known_denoisers import perfect_model
from ldmprobe.analysis.intervals import clustered_mean
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.memorization import probe_memorization
from ldmprobe.probing.memorization_record import BY_HEART, MEMORIZED, MEMORIZED_WIDTH, PROBE, memorized_by_band
from ldmprobe.training.latent_diffusion import stable_diffusion_scheduler
from ldmprobe.training.power_ema import PowerEMA
from planted_faults import Epsilon, Planted
from study.training import descend, small_unet

SIZES, RATIO, RATE, BATCH, DRAWS, LENGTH = (25, 50, 100, 200, 400), 1.35, 2e-3, 32, 128, 0.1


def course(
    rows: Callable[[int], Tensor], training: Tensor, held_out: Tensor, first: int, last: int, width: int
) -> Iterator[ProbeRecord]:
    """Train on ``rows(step)``; yield what is memorized of ``training``, from step ``first`` on a geometric grid."""
    network = Epsilon(small_unet(training.shape[1], width))
    average, ema = copy.deepcopy(network), PowerEMA(network, [LENGTH])
    schedule, shape = as_schedule(stable_diffusion_scheduler()), tuple(training.shape[1:])
    model = DiffusionModel(Planted(average, "none"), schedule, shape)
    known, unseen, reference = HeldOut(training, {}), HeldOut(held_out, {}), LatentStatistics.fit(training)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    probed: float = first
    for step in range(1, last + 1):
        z0 = rows(step)
        t, epsilon = torch.randint(1000, (len(z0),)), torch.randn_like(z0)
        loss = (network(schedule.add_noise(z0, epsilon, t), t) - epsilon).pow(2).mean()
        descend(optimizer, loss, network)
        ema.update(network)
        if step >= probed:
            probed = max(probed * RATIO, step + 1)
            average.load_state_dict(network.state_dict() | ema.weights[LENGTH])
            yield probe_memorization(model, known, unseen, reference, DRAWS, DRAWS, step=step)


def onset_of(records: list[ProbeRecord]) -> float:
    """Return the step at which M comes to ``BY_HEART``; NaN where it was there at the first probe, or never comes."""
    steps, share = np.log([record.step for record in records]), [record.scalars[MEMORIZED] for record in records]
    above = np.flatnonzero(np.array(share) >= BY_HEART)
    if not above.size or above[0] == 0:
        return float("nan")
    k = above[0]
    return float(np.exp(np.interp(BY_HEART, share[k - 1 : k + 1], steps[k - 1 : k + 1])))


def records_of(
    out: Path, make: Callable[[], Iterator[ProbeRecord]], is_end: Callable[[ProbeRecord], bool]
) -> list[ProbeRecord]:
    """Return a run's records: those that are there, or else, where they do not come to its end, of training anew."""
    store = RecordStore(out)
    records = store.read(PROBE)
    if not records or not is_end(records[-1]):
        records = []
        for record in make():
            store.append(record)
            records.append(record)
            if is_end(record):
                break
    return records


def digits(out: Path, size: int, seed: int, last: int, width: int) -> float:
    """Return the onset of a network trained on so many digits, chosen by the seed."""

    def make() -> Iterator[ProbeRecord]:
        latents, held_out = latents_of("digits")
        torch.manual_seed(seed)
        training = latents[torch.randperm(len(latents))[:size]]

        def batch(step: int) -> Tensor:
            return training[torch.randint(size, (BATCH,))]

        return course(batch, training, held_out, 2 * size, last, width)

    def is_end(record: ProbeRecord) -> bool:
        return record.scalars[MEMORIZED] >= BY_HEART or record.step * RATIO > last

    return onset_of(records_of(out / f"digits-{width}-{size}-{seed}", make, is_end))


def endless(out: Path, seed: int, last: int, width: int) -> tuple[int, int, float]:
    """Return how many probes there are of a network that sees each Gaussian row once, how many of them have a band that
    a verdict would call memorizing, and the largest M with its half-width taken off.
    """

    def make() -> Iterator[ProbeRecord]:
        rows = perfect_model("1/f²", (2, 8, 8), 4, seed, last * BATCH + DRAWS)[1].latents.float()
        torch.manual_seed(seed)
        each = rows[DRAWS:].split(BATCH)
        return course(lambda step: each[step - 1], rows[DRAWS:][:DRAWS], rows[:DRAWS], 25, last, width)

    records = records_of(out / f"endless-{width}-{seed}", make, lambda record: record.step * RATIO > last)
    surely = [[known.share - known.half_width for known in memorized_by_band(record).values()] for record in records]
    named = sum(max(bands) >= BY_HEART for bands in surely)
    return len(records), named, max(r.scalars[MEMORIZED] - r.scalars[MEMORIZED_WIDTH] for r in records)


def main(args: argparse.Namespace) -> None:
    sizes = args.sizes
    onsets = np.full((args.seeds, len(sizes)), np.nan)
    print("| seed | " + " | ".join(f"n = {size}" for size in sizes) + " |\n" + "|---" * (len(sizes) + 1) + "|")
    for seed in range(args.seeds):
        for k, size in enumerate(sizes):
            onsets[seed, k] = digits(args.out, size, seed, args.steps, args.width)
        print(f"| {seed} | " + " | ".join(f"{onset:.0f}" for onset in onsets[seed]) + " |", flush=True)
    slopes = [linregress(np.log(sizes), np.log(each)).slope for each in onsets]
    exponent = clustered_mean(np.array(slopes), np.arange(args.seeds))
    print(f"\nonset ∝ n^{exponent.value:.2f}, 95 %: ± {exponent.half_width:.2f} over {args.seeds} seeds")
    for seed in range(args.seeds):
        number, named, surely = endless(args.out, seed, args.endless_steps, args.width)
        print(
            f"endless Gaussian data, seed {seed}: {named} of {number} probes named; M − half-width {surely:.3f} at most"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs' records")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=32, help="of the U-Net, doubled at 4×4")
    parser.add_argument("--steps", type=int, default=4000, help="of each run on digits, at most")
    parser.add_argument("--endless-steps", type=int, default=1000, help="of each run on Gaussian data")
    main(parser.parse_args())
