"""Is a verdict on one run by itself true? Writes the tables of docs/LOG.md's section of that name.

    python scripts/bench_verdict.py perfect                         (quarter of an hour of one core)
    python scripts/bench_verdict.py trained --out runs/verdicts     (forty minutes of one core)
    python scripts/bench_verdict.py runs runs/families/*            (records that are there)

perfect  exact denoisers of clusters, of Gaussian data, and of data half of whose directions have no variance: is any
         accused, by one probe or by two?
trained  runs on digits, shapes or a folder of images, each judged alone at each of its probes: the healthy run, faults
         put into its probes, and runs whose timesteps are drawn unevenly. Which are at fault, since when, and where?
         Sixty healthy runs and as many faulty ones, which go on where they were stopped:
         --datasets digits shapes PATH --widths 16 32 --seeds 10
runs     the course of verdicts on runs that are there

With --quick (a minute each), perfect takes one seed of each, and trained twenty steps with three faults: that it runs, not
what it says.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from known_denoisers import CLUSTERS_SHAPE, ClusterDenoiser, Clusters, perfect_model
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.objective import TimestepObjective
from ldmprobe.diffusion.weighting import UniformWeighting
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.judge import judge
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.objective import objective_record
from ldmprobe.probing.verdict import State, Verdict
from ldmprobe.training.latent_diffusion import stable_diffusion_scheduler
from planted_faults import FAULT_BAND, STARVED, Planted, is_earlier, real_latents, timesteps, training

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


# --- training ---------------------------------------------------------------------------------------------------------

AT_PROBE = (
    *("scaled by 1.05", "shifted by 0.05", "one channel × 1.10", "blurred", "noise added", "time + 60"),
    *("frozen", "stale average"),
)
HEALTHY, PLACELESS = "none", "stale average"
ALARMS = (State.AT_FAULT, State.BROKEN, State.OVERFITTING, State.MEMORIZING)


@dataclass(frozen=True)
class Run:
    """A run that was judged at each of its probes: what was planted, and what the last verdict says."""

    name: str
    fault: str
    verdict: Verdict
    since: int | None
    in_place: bool

    @property
    def alarm(self) -> bool:
        return self.verdict.state in ALARMS

    @classmethod
    def of(cls, name: str, fault: str, store: RecordStore) -> Run:
        course, drawn = store.read("denoising"), store.read("objective")
        verdicts = [judge([*drawn, *course[: k + 1]]) for k in range(1, len(course))]
        alarms = [verdict.state in ALARMS for verdict in verdicts]
        since = next((k + 1 for k in range(len(alarms)) if all(alarms[k:])), None)
        return cls(name, fault, verdicts[-1], since, is_in_place(verdicts[-1], fault, course[-1]))


def train_and_judge(args: argparse.Namespace) -> None:
    """Make the runs that are not there yet, and print what is said of each, and then of all."""
    put_in = ("scaled by 1.05", "frozen", PLACELESS) if args.quick else AT_PROBE
    starved = () if args.quick else tuple(STARVED)
    judged: list[Run] = []
    print("| run | verdict at the end | an alarm since probe | in its place | it says |\n" + "|---" * 5 + "|")
    for dataset in args.datasets:
        latents, held_out, reference = real_latents(dataset, args.image_column)
        for width, seed in itertools.product(args.widths, range(args.seeds)):
            faulty = seed < args.faulty_seeds
            for faults in ((HEALTHY, *(put_in if faulty else ())), *((fault,) for fault in starved if faulty)):
                name = f"{Path(dataset).stem}-{width}-{seed}"
                stores = {fault: RecordStore(args.out / f"{name}-{fault.replace(' ', '_')}") for fault in faults}
                if any(store.at("denoising", args.steps) is None for store in stores.values()):
                    make(stores, latents, held_out, reference, width, seed, args)
                for fault, store in stores.items():
                    run = Run.of(name, fault, store)
                    place = "yes" if run.in_place else "no"
                    placed = "" if run.since is None or fault in (HEALTHY, PLACELESS) else place
                    said = f"{run.verdict.state.value} | {run.since or ''} | {placed} | {run.verdict.sentence}"
                    print(f"| {name}, {fault} | {said} |", flush=True)
                    judged.append(run)
    print(f"\n{in_all(judged)}")


def make(
    stores: dict[str, RecordStore],
    latents: torch.Tensor,
    held_out: HeldOut,
    reference: LatentStatistics,
    width: int,
    seed: int,
    args: argparse.Namespace,
) -> None:
    """Train once, and probe the model with each of the faults, into their stores."""
    previous: dict[str, ProbeRecord | None] = dict.fromkeys(stores)
    schedule, sampler = as_schedule(stable_diffusion_scheduler()), timesteps(next(iter(stores)))
    drawn = objective_record(TimestepObjective(schedule, UniformWeighting(), sampler))
    for store in stores.values():
        store.set_aside(-1)  # what an earlier attempt has left
        store.append(drawn)
    for step, models in probed(latents, width, seed, args.steps, args.steps // args.probes, tuple(stores)):
        for fault, model in models.items():
            record = probe_denoising(
                model, held_out, reference, args.num_draws, batch_size=args.num_draws, step=step,
                previous=previous[fault],
            )  # fmt: skip
            stores[fault].append(record)
            previous[fault] = record


def probed(
    latents: torch.Tensor, width: int, seed: int, steps: int, every: int, faults: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, DiffusionModel]]]:
    """Train; yield, at each probe, a model with each of the faults."""
    schedule, shape, earlier = as_schedule(stable_diffusion_scheduler()), tuple(latents.shape[1:]), None
    for step, average, _ in training(latents, seed, steps, starved=faults[0], width=width):
        if step % every == 0:
            before = earlier or average
            networks = {
                fault: Planted(average, HEALTHY if fault in STARVED else fault, before if fault == "frozen" else None)
                for fault in faults
                if fault != PLACELESS
            }
            if PLACELESS in faults:
                networks[PLACELESS] = Planted(before, HEALTHY)
            yield step, {fault: DiffusionModel(network, schedule, shape) for fault, network in networks.items()}
        if is_earlier(step, steps):
            earlier = copy.deepcopy(average)


def is_in_place(verdict: Verdict, fault: str, record: ProbeRecord) -> bool:
    """Whether every band that an alarm is about has planted levels in it; a fault without a place has it anywhere."""
    if fault == PLACELESS:
        return True
    curve = record.curves["denoising_mse"]
    low, high = STARVED.get(fault, FAULT_BAND)
    planted = curve.log_snr[(low <= curve.timestep) & (curve.timestep < high)]
    accused = [band for band in verdict.bands if band.state in ALARMS]
    return all(((band.low <= planted) & (planted < band.high)).any() for band in accused)


def in_all(judged: list[Run]) -> str:
    """The verdicts by what was planted, false alarms, and the share of faults that were detected and placed."""
    states = sorted({run.verdict.state for run in judged}, key=lambda state: state.code)
    lines = [f"| planted | runs | {' | '.join(state.value for state in states)} | in its place |"]
    lines.append("|---" * (len(states) + 3) + "|")
    for fault in dict.fromkeys(run.fault for run in judged):
        own = [run for run in judged if run.fault == fault]
        counts = (str(sum(run.verdict.state is state for run in own) or "") for state in states)
        placed = "" if fault == HEALTHY else str(sum(run.alarm and run.in_place for run in own))
        lines.append(f"| {fault} | {len(own)} | {' | '.join(counts)} | {placed} |")
    healthy = [run for run in judged if run.fault == HEALTHY]
    faulty = [run for run in judged if run.fault != HEALTHY]
    told = f"False alarms: {sum(run.alarm for run in healthy)} of {len(healthy)} healthy runs."
    if faulty:
        placed = sum(run.alarm and run.in_place for run in faulty)
        told += f" Detected and placed: {placed} of {len(faulty)} faulty ones ({placed / len(faulty):.0%})."
    return "\n".join([*lines, "", told])


# --- runs that are there ---------------------------------------------------------------------------------------------


def runs(folders: list[Path]) -> None:
    print("| run | verdict at each probe after the first | at the end it says |\n|---|---|---|")
    for folder in folders:
        store = RecordStore(folder)
        drawn, probes = store.read("objective"), store.read("denoising")
        verdicts = [judge([*drawn, *probes[: k + 1]]) for k in range(len(probes))]
        course = ", ".join(verdict.state.value for verdict in verdicts[1:])
        print(f"| {folder.name} | {course} | {verdicts[-1].sentence} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    alone = commands.add_parser("perfect")
    alone.add_argument("--seeds", type=int, default=20)
    trained = commands.add_parser("trained")
    trained.add_argument("--datasets", nargs="+", default=["digits"], help="digits, shapes, or a folder of images")
    trained.add_argument("--image-column", default="img", help="of a folder")
    trained.add_argument("--widths", type=int, nargs="+", default=[32], help="of the U-Net, doubled at 4×4")
    trained.add_argument("--seeds", type=int, default=1)
    trained.add_argument("--faulty-seeds", type=int, default=1, help="of these so many are made faulty, too")
    trained.add_argument("--steps", type=int, default=600)
    trained.add_argument("--probes", type=int, default=5)
    trained.add_argument("--num-draws", type=int, default=NUM_DRAWS)
    trained.add_argument("--out", type=Path, default=Path("runs/verdicts"))
    for each in (alone, trained):
        each.add_argument("--quick", action="store_true")
    commands.add_parser("runs").add_argument("folders", type=Path, nargs="+", metavar="RUN_DIR")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "perfect":
        perfect(1 if args.quick else args.seeds)
    elif args.command == "trained":
        args.steps, args.probes = (20, 2) if args.quick else (args.steps, args.probes)
        train_and_judge(args)
    else:
        runs(args.folders)
