"""Trains several methods with several seeds and lays them side by side: a table with intervals and paired tests, and
two figures.

    python scripts/reweighting_study.py configs/studies/digits.yaml --out runs/digits_study
    python scripts/reweighting_study.py STUDY.yaml --out DIR --processes 2 -- --data.init_args.dataset PATH

A study is one YAML:

    base: [digits_base.yaml]      # configurations of `ldmprobe fit` beside the study, with DenoisingProbe,
                                  # SampleQuality and TrainingClock
    baseline: uniform
    seeds: [0, 1, 2]
    methods:                      # name: what is added to the base, itself a configuration of `ldmprobe fit`
      uniform: {}
      min-snr-5: {model: {init_args: {weighting: {class_path: ldmprobe.MinSNR}}}}
    candidates:                   # may be left out: settings of which each method has the best for itself
      rate-1e-3: {model: {init_args: {optimizer: {init_args: {lr: 1.0e-3}}}}}
      rate-3e-3: {model: {init_args: {optimizer: {init_args: {lr: 3.0e-3}}}}}

Candidates are chosen by successive halving, with seeds for the resource, by bound and FID alike (scripts/study/
halving.py). Each run is a process of its own with one thread, in DIR/runs/METHOD/seed-K or DIR/runs/METHOD/CANDIDATE/
seed-K; everything after `--` is handed to each of them. A seed is that of the weights, of noise and timesteps and of the order of images, the same for all methods. The
same command goes on where it was stopped: finished runs are not repeated, killed ones continue from their checkpoint. A
run that fails ends no other; it is told with the end of its log, the tables are made without it, and the exit code is
1. Written are DIR/table.md, study.parquet, pareto.png and curves.png.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from ldmprobe.comparison.configuration import configuration_differences
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_write
from ldmprobe.io.store import RecordStore
from ldmprobe.tracking.charts.static import png
from ldmprobe.tracking.comparable import Run as Records
from ldmprobe.tracking.comparable import read_runs
from study.figures import curves_figure, pareto_figure
from study.halving import better_half, rung_seeds
from study.jobs import Job, run_jobs, start_command
from study.plan import read_plan as read_keys
from study.statistics import BOUND, FID, Study, StudyRun, study, study_run
from study.tables import study_markdown, study_table, tuning_markdown

_UNTUNED: dict[str, dict[str, Any]] = {"": {}}
_NAME = re.compile(r"\w[\w.+-]*")  # of a method or a candidate: a folder's


@dataclass(frozen=True)
class Plan:
    """A study as its YAML gives it; ``methods`` holds what each adds to ``base``, ``candidates`` what each method is
    tried with, ``arguments`` what is handed to every run."""

    path: Path
    base: list[Path]
    baseline: str
    seeds: list[int]
    methods: dict[str, dict[str, Any]]
    candidates: dict[str, dict[str, Any]]
    arguments: list[str]


@dataclass(frozen=True)
class Run(Job):
    """One run of the plan."""

    method: str = ""
    candidate: str = ""
    seed: int = 0

    @property
    def label(self) -> str:
        return f"{self.method} ({self.candidate})" if self.candidate else self.method


def read_plan(path: Path, arguments: list[str]) -> Plan:
    """The study in a YAML file.

    Raises:
        ConfigurationError: what is no study, saying what is expected.
    """
    keys = {"base": list, "baseline": str, "seeds": list, "methods": dict}
    given = read_keys(path, keys, {"candidates": dict})
    base = [path.parent / name for name in given["base"]]
    if missing := [str(config) for config in base if not config.is_file()]:
        raise ConfigurationError(f"{path} has the base {', '.join(missing)}, which is no file.")
    seeds, methods, candidates = given["seeds"], given["methods"], given.get("candidates", {})
    if not all(isinstance(seed, int) and seed >= 0 for seed in seeds) or len({*seeds}) < len(seeds):
        raise ConfigurationError(f"{path} has seeds {seeds}; expected different whole numbers from 0.")
    for what, named in (("method", methods), ("candidate", candidates)):
        for name, settings in named.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(settings, dict):
                raise ConfigurationError(
                    f"{path} has the {what} {name!r}: {settings!r}; expected a name (in quotes if it is a number) "
                    "of letters, digits and . + - _, and a configuration ({} for none)."
                )
    if given["baseline"] not in methods:
        raise ConfigurationError(
            f"{path} has the baseline {given['baseline']!r}; expected one of {', '.join(methods)}."
        )
    return Plan(path, base, given["baseline"], seeds, methods, candidates or _UNTUNED, arguments)


def prepare(plan: Plan, out: Path) -> list[Run]:
    """Write down what each method is run with, and list the runs, the first seed of all methods first.

    Raises:
        ConfigurationError: a method was begun with other settings, naming them.
    """
    base = {config.name: yaml.safe_load(config.read_text()) for config in plan.base}
    jobs = [
        Run(f"{m} {c}".rstrip() + f", seed {seed}", out / "runs" / m / c / f"seed-{seed}", (), m, c, seed)
        for seed in plan.seeds
        for m in plan.methods
        for c in plan.candidates
    ]
    for job in jobs[: len(plan.methods) * len(plan.candidates)]:
        folder = job.folder.parent
        parts = {"method": plan.methods[job.method], "candidate": plan.candidates[job.candidate]}
        text = yaml.safe_dump({"base": base, **parts, "arguments": plan.arguments})
        if (folder / "config.yaml").exists():
            _refuse_changed(folder, text)
        for name, content in (("config", text), *((part, yaml.safe_dump(each)) for part, each in parts.items())):
            with atomic_write(folder / f"{name}.yaml") as file:
                file.write(content.encode())
    return jobs


def _refuse_changed(folder: Path, text: str) -> None:
    with tempfile.TemporaryDirectory() as asked:
        (Path(asked) / "config.yaml").write_text(text)
        differing = configuration_differences([folder, Path(asked)])
    if differing:
        told = "; ".join(f"{key}: {was}, now {now}" for key, (was, now) in differing.items())
        raise ConfigurationError(
            f"{folder} holds runs with other settings ({told}). Set them back, move that folder away, or choose "
            "another --out."
        )


def fit_arguments(plan: Plan, job: Run) -> list[str]:
    """Return what `ldmprobe` is called with."""
    own = [job.folder.parent / f"{part}.yaml" for part in ("method", "candidate")]
    configs = [f"--config={path}" for path in (*plan.base, *own)]
    seeds = [f"--{name}={job.seed}" for name in ("seed_everything", "model.init_args.seed", "data.init_args.seed")]
    return ["fit", *configs, *plan.arguments, *seeds, f"--run_dir={job.folder}", "--ckpt_path=last"]


def start(plan: Plan, job: Run) -> subprocess.Popen:
    return start_command(job, fit_arguments(plan, job))


def finished_runs(jobs: Iterable[Run]) -> list[tuple[Run, StudyRun]]:
    """What the finished runs measured.

    Raises:
        ConfigurationError: they are not comparable.
    """
    done = [job for job in jobs if job.mark.exists()]
    if len(done) > 1:
        runs = read_runs([job.folder for job in done], [job.name for job in done])
    else:
        probes = ("denoising", "quality")
        runs = [Records(job.name, job.folder, {p: RecordStore(job.folder).read(p) for p in probes}) for job in done]
    return [(job, study_run(run, job.label, job.seed)) for job, run in zip(done, runs, strict=True)]


def tune(plan: Plan, jobs: Sequence[Run], train: Callable[[Sequence[Run]], None]) -> tuple[list[Run], list[Run]]:
    """Train rung by rung, and return the runs of each method's best candidate, and all that any rung asked for. A
    candidate whose run failed has the last rank.
    """
    asked: list[Run] = []
    alive = {(job.method, job.candidate) for job in jobs}
    *rungs, every = rung_seeds(len(plan.candidates), plan.seeds)
    for seeds in rungs:
        rung = [job for job in jobs if (job.method, job.candidate) in alive and job.seed in seeds]
        train(rung)
        asked += [job for job in rung if job not in asked]
        found = finished_runs(rung)
        for method in plan.methods:
            finals: dict[str, dict[int, list[float]]] = {c: {} for c in plan.candidates if (method, c) in alive}
            for job, run in found:
                if job.method == method:
                    finals[job.candidate][job.seed] = [run.final(metric) for metric in (BOUND, FID)]
            alive -= {(method, c) for c in finals.keys() - {*better_half(finals)}}
    best = [job for job in jobs if (job.method, job.candidate) in alive and job.seed in every]
    train(best)
    return best, [*asked, *(job for job in best if job not in asked)]


def _tuning(plan: Plan, asked: Sequence[Run], best: Sequence[Run]) -> str:
    tried = [(job.method, job.candidate, run) for job, run in finished_runs(asked)]
    return tuning_markdown(list(plan.candidates), tried, {job.method: job.candidate for job in best})


def read_study(plan: Plan, jobs: Sequence[Run]) -> Study:
    """The finished runs' statistics.

    Raises:
        ConfigurationError: fewer than two are finished, or none of the baseline, or they are not comparable.
    """
    found = finished_runs(jobs)
    if len(found) < 2:
        raise ConfigurationError(f"Of {len(jobs)} runs {len(found)} are finished; a table needs two at least.")
    baseline = next((job.label for job in jobs if job.method == plan.baseline), plan.baseline)
    ordered = sorted(found, key=lambda each: (list(plan.methods).index(each[0].method), each[0].seed))
    return study([run for _, run in ordered], baseline)


def write(found: Study, title: str, tuning: str, missing: list[str], out: Path) -> None:
    with atomic_write(out / "study.parquet") as file:
        pq.write_table(study_table(found), file, compression="zstd")
    text = study_markdown(found, title, missing) + tuning
    for name, content in (
        ("table.md", text.encode()),
        ("pareto.png", png(pareto_figure(found))),
        ("curves.png", png(curves_figure(found))),
    ):
        with atomic_write(out / name) as file:
            file.write(content)
    print(f"\n{text}\n{out / 'table.md'}, study.parquet, pareto.png, curves.png")


def main(argv: list[str]) -> int:
    """0: all is there; 1: runs are missing; 2: there is something to put right first."""
    own, arguments = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new directory, or this study's")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at a time (default: cores)")
    parser.add_argument("--table-only", action="store_true", help="train nothing; tables of the runs that are finished")
    args = parser.parse_args(own)
    try:
        if args.processes < 1:
            raise ConfigurationError(f"--processes is {args.processes}; expected at least 1.")
        plan = read_plan(args.study, arguments)
        jobs = prepare(plan, args.out)
        failed: dict[Job, str] = {}

        def train(rung: Sequence[Run]) -> None:
            if not args.table_only:
                failed.update(run_jobs(rung, lambda job: start(plan, job), args.processes))

        best, asked = tune(plan, jobs, train)
        missing = [failed.get(job, f"{job.name} is not finished") for job in asked if not job.mark.exists()]
        tuning = _tuning(plan, asked, best) if len(plan.candidates) > 1 else ""
        write(read_study(plan, best), args.study.stem, tuning, missing, args.out)
    except ConfigurationError as error:
        print(f"reweighting_study: error: {error}", file=sys.stderr)
        return 2
    return 1 if missing else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # runs are ended, too
    sys.exit(main(sys.argv[1:]))
