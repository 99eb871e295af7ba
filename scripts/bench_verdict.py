"""Is a verdict on one run by itself true? Writes the tables of docs/LOG.md's section of that name.

    python scripts/bench_verdict.py perfect                       (quarter of an hour of one core)
    python scripts/bench_verdict.py digits --out runs/verdicts    (forty minutes of one core)
    python scripts/bench_verdict.py runs runs/families/*          (records that are there)

perfect  exact denoisers of clusters, of Gaussian data, and of data half of whose directions have no variance: is any
         accused, by one probe or by two?
digits   training on digits, judged alone at each of six probes: the healthy run, faults put into its probes, and runs
         whose timesteps are drawn unevenly. Which are at fault, since when, and where?
runs     the course of verdicts on runs that are there

With --quick (a minute each), perfect takes one seed of each, and digits twenty steps with three faults: that it runs, not
what it says.
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from known_denoisers import CLUSTERS_SHAPE, ClusterDenoiser, Clusters, perfect_model
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.judge import judge
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.verdict import State, Verdict
from ldmprobe.training.latent_diffusion import stable_diffusion_scheduler
from planted_faults import FAULT_BAND, STARVED, Planted, is_earlier, real_latents, training

Probed = tuple[DiffusionModel, HeldOut, LatentStatistics]
NUM_DRAWS = 512

# --- perfect denoisers -----------------------------------------------------------------------------------------------


def clusters(number: int, seed: int) -> Probed:
    generator = torch.Generator().manual_seed(seed)
    data, schedule = Clusters(number, generator), as_schedule(stable_diffusion_scheduler())
    reference = LatentStatistics.fit(data.draw(2048, generator))
    held_out = HeldOut(data.draw(NUM_DRAWS, generator), {})
    model = DiffusionModel(Planted(ClusterDenoiser(data, schedule), "none"), schedule, CLUSTERS_SHAPE)
    return model, held_out, reference


KNOWN: dict[str, Callable[[int], Probed]] = {
    "ten clusters": lambda seed: clusters(10, seed),
    "two clusters": lambda seed: clusters(2, seed),
    "Gaussian, 1/f²": lambda seed: perfect_model("1/f²", (1, 8, 8), 4, seed, NUM_DRAWS),
    "Gaussian, half without variance": lambda seed: perfect_model("half without", (1, 8, 8), 4, seed, NUM_DRAWS),
}


def perfect(seeds: int) -> None:
    """Each denoiser judged by one probe, and by that probe twice, as if training had gone on and changed nothing."""
    print("| exact denoiser of | runs | one probe | two probes |\n" + "|---" * 4 + "|")
    for name, known in KNOWN.items():
        once, twice = Counter[str](), Counter[str]()
        for seed in range(seeds):
            record = probe_denoising(*known(seed), NUM_DRAWS, batch_size=NUM_DRAWS, seed=seed, step=10)
            once[judge([record]).state.value] += 1
            twice[judge([record, replace(record, step=20)]).state.value] += 1
        counts = " | ".join(", ".join(f"{state}: {n}" for state, n in found.items()) for found in (once, twice))
        print(f"| {name} | {seeds} | {counts} |", flush=True)


# --- training on digits ----------------------------------------------------------------------------------------------

AT_PROBE = (
    *("scaled by 1.05", "shifted by 0.05", "one channel × 1.10", "blurred", "noise added", "time + 60"),
    *("frozen", "stale average"),
)


def digits(out: Path, seeds: int, steps: int, quick: bool) -> None:
    every = steps // (2 if quick else 5)
    put_in = ("scaled by 1.05", "frozen", "stale average") if quick else AT_PROBE
    starved = () if quick else tuple(STARVED)
    latents, held_out, reference = real_latents("digits")
    print("| run | seed | verdict at the end | at fault since probe | in its place | it says |\n" + "|---" * 6 + "|")
    for seed in range(seeds):
        for faults in (("none", *put_in), *((fault,) for fault in starved)):
            courses: dict[str, list[ProbeRecord]] = {fault: [] for fault in faults}
            for step, models in probed(latents, seed, steps, every, faults):
                for fault, model in models.items():
                    course = courses[fault]
                    record = probe_denoising(
                        model, held_out, reference, NUM_DRAWS, batch_size=NUM_DRAWS, step=step,
                        previous=course[-1] if course else None,
                    )  # fmt: skip
                    course.append(record)
                    RecordStore(out / f"{fault.replace(' ', '_')}-{seed}").append(record)
            for fault, course in courses.items():
                print(row(fault, seed, course), flush=True)


def probed(
    latents: torch.Tensor, seed: int, steps: int, every: int, faults: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, DiffusionModel]]]:
    """Train; yield, at each probe, a model with each of the faults."""
    schedule, shape, earlier = as_schedule(stable_diffusion_scheduler()), tuple(latents.shape[1:]), None
    for step, average, _ in training(latents, seed, steps, starved=faults[0]):
        if step % every == 0:
            before = earlier or average
            networks = {
                fault: Planted(average, "none" if fault in STARVED else fault, before if fault == "frozen" else None)
                for fault in faults
                if fault != "stale average"
            }
            if "stale average" in faults:
                networks["stale average"] = Planted(before, "none")
            yield step, {fault: DiffusionModel(network, schedule, shape) for fault, network in networks.items()}
        if is_earlier(step, steps):
            earlier = copy.deepcopy(average)


def row(fault: str, seed: int, course: list[ProbeRecord]) -> str:
    verdicts = [judge(course[: k + 1]) for k in range(1, len(course))]
    last, states = verdicts[-1], [verdict.state for verdict in verdicts]
    since = next((k + 1 for k in range(len(states)) if set(states[k:]) == {State.AT_FAULT}), None)
    place = "" if since is None or fault in ("none", "stale average") else in_place(last, fault, course[-1])
    return f"| {fault} | {seed} | {last.state.value} | {since or ''} | {place} | {last.sentence} |"


def in_place(verdict: Verdict, fault: str, record: ProbeRecord) -> str:
    """Whether every band that is at fault has planted levels in it."""
    curve = record.curves["denoising_mse"]
    low, high = STARVED.get(fault, FAULT_BAND)
    planted = curve.log_snr[(low <= curve.timestep) & (curve.timestep < high)]
    accused = [band for band in verdict.bands if band.state is State.AT_FAULT]
    return "yes" if all(((band.low <= planted) & (planted < band.high)).any() for band in accused) else "no"


# --- runs that are there ---------------------------------------------------------------------------------------------


def runs(folders: list[Path]) -> None:
    print("| run | verdict at each probe after the first | at the end it says |\n|---|---|---|")
    for folder in folders:
        records = RecordStore(folder).read("denoising")
        course = ", ".join(judge(records[: k + 1]).state.value for k in range(1, len(records)))
        print(f"| {folder.name} | {course} | {judge(records).sentence} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    alone = commands.add_parser("perfect")
    alone.add_argument("--seeds", type=int, default=20)
    trained = commands.add_parser("digits")
    trained.add_argument("--seeds", type=int, default=1)
    trained.add_argument("--steps", type=int, default=600)
    trained.add_argument("--out", type=Path, default=Path("runs/verdicts"))
    for each in (alone, trained):
        each.add_argument("--quick", action="store_true")
    commands.add_parser("runs").add_argument("folders", type=Path, nargs="+", metavar="RUN_DIR")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "perfect":
        perfect(1 if args.quick else args.seeds)
    elif args.command == "digits":
        digits(args.out, args.seeds, 20 if args.quick else args.steps, args.quick)
    else:
        runs(args.folders)
