"""Does StopRule stop in time, and not too early? Its regret over data sets that are overfitted sooner or later.

    python scripts/bench_stop_rule.py --seeds 6    (six minutes of one core)

Perceptrons learn the latents of 50 to 1,600 digits, several seeds each, and are probed every hundred steps on 90 held-out
images. What the rule would have kept is judged on 90 others: its bound there less that of the best of all probes, as a
share of what the best has fallen from predicting no noise at all. A run is unfinished where the others' bound is lowest
at the last probe; none of those may be stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from bench_forecast import latents_of, probes
from ldmprobe.callbacks.stop_rule import StopRule, is_better
from ldmprobe.io.record import PerSample, ProbeRecord
from ldmprobe.probing.denoising_record import ERRORS, bound_per_draw, nats_of

SIZES, WIDTH, RATE, EVERY = (50, 100, 200, 400, 800, 1600), 256, 1e-3, 100


def half(record: ProbeRecord, which: int) -> ProbeRecord:
    """Return the record of every second draw, which are those of every second image."""
    errors = record.per_sample[ERRORS]
    kept = PerSample(errors.timestep, errors.log_snr, errors.value[:, which::2])
    numbers = {name: record.provenance[name] // 2 for name in ("num_draws", "num_images")}
    return replace(record, per_sample={ERRORS: kept}, provenance=record.provenance | numbers)


def stopped(records: list[ProbeRecord], rule: StopRule) -> tuple[int, int | None]:
    """Return the number of the probe that the rule keeps, and of that which it stops at, or None."""
    best, waited = 0, 0
    for k in range(1, len(records)):
        better = is_better(records[k], records[best], rule.least_gain)
        best, waited = (k, 0) if better else (best, waited + 1)
        if waited >= rule.patience:
            return best, k
    return best, None


def main(seeds: int, steps: int) -> None:
    latents, held = latents_of("digits")
    print("| images | seed | best probe | kept | stopped at | regret |\n|---|---|---|---|---|---|")
    regrets, unfinished = [], []
    for size in SIZES:
        for seed in range(seeds):
            chosen = np.random.default_rng(seed).permutation(len(latents))[:size]
            course = list(probes((latents[chosen], held), WIDTH, RATE, seed, steps, EVERY))
            others = np.array([bound_per_draw(half(record, 1)).mean() for record in course])
            kept, end = stopped([half(record, 0) for record in course], StopRule())
            regret = (others[kept] - others.min()) / (nats_of(course[0]).sum() - others.min())
            best = int(others.argmin())
            regrets.append(regret)
            unfinished += [end is not None] if best == len(course) - 1 else []
            ended = "—" if end is None else course[end].step
            print(
                f"| {size} | {seed} | {course[best].step} | {course[kept].step} | {ended} | {regret:.2%} |", flush=True
            )
    print(f"\nregret: largest {max(regrets):.2%}, median {np.median(regrets):.2%}")
    print(f"unfinished runs: {len(unfinished)}, of which stopped: {sum(unfinished)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2400, help="of each run")
    main(**vars(parser.parse_args()))
