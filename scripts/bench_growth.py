"""Whether a probe costs the same however many there were before it: a soak of real probes, records and loggers.

    python scripts/bench_growth.py            (300 probes of the demo's network; nearly three hours of one core)
    python scripts/bench_growth.py --quick    (60 probes of a smaller one; under three minutes)

One run with DDIMProbe and DenoisingProbe at every step and large samples, logged to W&B (offline), TensorBoard and CSV.
From its first 10, 30, 100, … records pages are written, and runs of so many compared, each in a process of its own. For
each number of probes n: the median over the probes from n/2 to n, and of the larger half of the numbers the exponent of
n that fits them; 0 is a cost that does not grow. Seconds are the process's CPU seconds, which other work on the machine
hardly changes. Fails if logging or memory grow, or a page is too large.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np

POINTS = (10, 30, 100, 300)
PAGE_LIMIT_MB, SHARE_LIMIT, EXPONENT_LIMIT = 2.0, 0.25, 0.15


@contextmanager
def timed(owner: object, name: str, seconds: list[float]) -> Iterator[None]:
    """Append the CPU seconds of each call of ``owner.name``."""
    function: Callable[..., object] = getattr(owner, name)

    def call(*args: object, **kwargs: object) -> object:
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.process_time() - began)

    with patch.object(owner, name, call):
        yield


def soak(folder: Path, number: int, pixels: int, quick: bool) -> dict[str, list[float]]:
    """Probe ``number`` times; of each time the CPU seconds of the probes and of what the loggers made of them, and the
    memory in MB."""
    import lightning as L
    from diffusers import UNet2DModel
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
    from PIL import Image

    from ldmprobe.callbacks import DDIMProbe, DenoisingProbe, probe_callback
    from ldmprobe.data.images import ImageData
    from ldmprobe.models.codec import LatentCodec
    from ldmprobe.models.conditioning import ClassConditioning
    from ldmprobe.probing.analyses import MarginalGap, OneStepError, PCAScatter, SampleImages, StepKL, X0Drift
    from ldmprobe.probing.analyses.base import Findings
    from ldmprobe.tracking.csv_logger import ResumableCSVLogger
    from ldmprobe.training.latent_diffusion import LatentDiffusion

    grain = np.random.default_rng(0).normal(0, 6, (pixels, pixels))

    class LargeSamples(SampleImages):
        """The digits enlarged, with a camera's grain, so that there is as much in them as in photos."""

        def finish(self) -> Findings:
            findings = super().finish()
            return replace(findings, images={"samples": [self._large(png) for png in findings.images["samples"]]})

        def _large(self, png: bytes) -> bytes:
            image = Image.open(io.BytesIO(png)).resize((pixels, pixels), Image.Resampling.BICUBIC)
            large, file = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)), io.BytesIO()
            large.save(file, "PNG")
            return file.getvalue()

    class Memory(L.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory.append(pages * resource.getpagesize() / 1e6)

    width = 16 if quick else 48
    network = UNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16, norm_num_groups=16, num_class_embeds=11,
    )  # fmt: skip
    module = LatentDiffusion(network, LatentCodec("builtin:digits"), conditioning=ClassConditioning(10, dropout=0.1))
    analyses = [StepKL(), PCAScatter(), X0Drift(), LargeSamples(), MarginalGap(), OneStepError()]
    few = {"num_samples": 32, "num_steps": 10} if quick else {}
    few_draws = {"num_draws": 32, "num_images": 32} if quick else {}
    probing: list[float] = []
    logging: list[float] = []
    memory: list[float] = []
    trainer = L.Trainer(
        default_root_dir=str(folder), max_steps=number - 1, max_epochs=-1, accelerator="cpu",
        logger=[
            WandbLogger("soak", str(folder), offline=True, project="soak"),
            TensorBoardLogger(str(folder), "tensorboard"),
            ResumableCSVLogger(str(folder), "csv"),
        ],
        callbacks=[DDIMProbe(1, analyses=analyses, **few), DenoisingProbe(1, **few_draws), Memory()],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        limit_val_batches=1, val_check_interval=10**6, check_val_every_n_epoch=None,
    )  # fmt: skip
    with (
        timed(DDIMProbe, "probe", probing),
        timed(DenoisingProbe, "probe", probing),
        timed(probe_callback, "log_record", logging),
    ):
        trainer.fit(module, ImageData("builtin:digits", label_column="label", image_size=32, batch_size=16))
    probes, logs = (np.reshape(seconds, (number, 2)).sum(1).tolist() for seconds in (probing, logging))
    return {"probing, s": probes, "logging, s": logs, "memory, MB": [memory[0], *memory]}


def first(run: Path, number: int, into: Path) -> Path:
    """A run of the first ``number`` steps' records."""
    (into / "probes").mkdir(parents=True)
    for path in (run / "probes").iterdir():
        if int(path.stem.split("-")[1]) < number:
            os.link(path, into / "probes" / path.name)
    return into


def in_process(*arguments: str) -> tuple[float, float]:
    """CPU seconds and peak memory in MB of ``ldmprobe`` with these arguments."""
    done = subprocess.run(
        [sys.executable, __file__, "--command", *arguments], check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes


def peak_megabytes() -> float:
    """Of this process alone; getrusage counts what its parent had."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e3


def exponent(numbers: list[int], costs: list[float]) -> float:
    """Of the power of the number that fits the costs, over the larger half of the numbers: the smaller tell of the
    start."""
    half = slice(len(numbers) // 2 - 1, None)
    return float(np.polyfit(np.log(numbers[half]), np.log(costs[half]), 1)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--probes", type=int, help="default: 300, quick 60")
    parser.add_argument("--pixels", type=int, help="size of the samples; default: 512, quick 128")
    parser.add_argument("--out", type=Path, help="keep the run here")
    parser.add_argument("--command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.command:
        from ldmprobe.cli import main as ldmprobe

        code = ldmprobe(args.command)
        print(json.dumps([time.process_time(), peak_megabytes()]))
        return code
    number = args.probes or (60 if args.quick else 300)
    pixels = args.pixels or (128 if args.quick else 512)
    points = [point for point in POINTS if point < number] + [number]
    with tempfile.TemporaryDirectory() as temporary:
        run = args.out or Path(temporary) / "run"
        series = soak(run, number, pixels, args.quick)
        found = {name: [median(values[n // 2 : n]) for n in points] for name, values in series.items()}
        rows: dict[str, list[float]] = {"report, s": [], "report's memory, MB": [], "page, MB": []}
        rows |= {"compare, s": [], "compare's memory, MB": [], "comparison, MB": []}
        for n in points:
            here = Path(temporary) / str(n)
            one, other = (first(run, n, here / name) for name in "ab")
            for command, page, arguments in (
                ("report", one / "report.html", [str(one)]),
                ("compare", here / "out" / "comparison.html", [str(one), str(other), "--out", str(here / "out")]),
            ):
                seconds, memory = in_process(command, *arguments)
                size = "page, MB" if command == "report" else "comparison, MB"
                rows[f"{command}, s"].append(seconds)
                rows[f"{command}'s memory, MB"].append(memory)
                rows[size].append(page.stat().st_size / 1e6)
        found |= rows
    found["logging ÷ probing"] = [
        log / probe for log, probe in zip(found["logging, s"], found["probing, s"], strict=True)
    ]
    print(f"{'probes':24}" + "".join(f"{n:>9}" for n in points) + "   exponent")
    for name, values in found.items():
        print(f"{name:24}" + "".join(f"{value:9.3g}" for value in values) + f"{exponent(points, values):11.2f}")
    failures = [
        f"grows: {name}" for name in ("logging, s", "memory, MB") if exponent(points, found[name]) > EXPONENT_LIMIT
    ]
    if found["page, MB"][-1] > PAGE_LIMIT_MB:
        failures.append(f"page of more than {PAGE_LIMIT_MB:.0f} MB")
    if not args.quick and found["logging ÷ probing"][-1] > SHARE_LIMIT:
        failures.append(f"logging is more than {SHARE_LIMIT:.0%} of probing")
    print("; ".join(failures) or "nothing grows")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
