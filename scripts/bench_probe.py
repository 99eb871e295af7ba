"""What a DDIM probe costs beyond its U-Net passes, side by side in one run.

    python scripts/bench_probe.py            (ten minutes on two cores)
    python scripts/bench_probe.py --quick    (two)

1. whole probe, all analyses, record on disk ÷ the bare passes it makes, timed inside it (U-Net of configs/families; 4×64×64, as
  Stable Diffusion's, small U-Net): a run's first, which also makes the ideals, and a later one
2. scikit-learn PCA + scipy KL on stored trajectories ÷ the same on the stream by ours, D = 16,384
3. exponent of the analyses' time in N and in S; peak memory at S = 10 and 100
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.stats import entropy
from sklearn.decomposition import PCA
from torch import Tensor, nn

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.io.store import RecordStore
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses import PCAScatter, StepKL
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from ldmprobe.training.latent_diffusion import stable_diffusion_scheduler
from study.training import families_unet, small_unet


class Free(nn.Module):
    """A denoiser that costs nothing, to see what everything else costs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return z_t * self.scale


def setting(network: nn.Module, shape: tuple[int, int, int]) -> tuple[DiffusionModel, LatentStatistics, HeldOut]:
    generator = torch.Generator().manual_seed(0)
    model = DiffusionModel(network.eval(), as_schedule(stable_diffusion_scheduler()), shape)
    dimension = int(np.prod(shape))
    latents = torch.randn(min(1024, 4 * dimension), *shape, generator=generator)
    return model, LatentStatistics.fit(latents), HeldOut(latents[:128], {})


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Timed(nn.Module):
    """A network that adds up the seconds spent in it: the probe's bare passes, timed in the very run that they are part
    of."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        started = time.perf_counter()
        prediction: Tensor = self.network(z_t, t).sample
        self.seconds += time.perf_counter() - started
        return prediction


def overhead(
    name: str, network: nn.Module, shape: tuple[int, int, int], n: int, steps: int, batch: int, rounds: int
) -> None:
    ratios: dict[str, list[float]] = {"first": [], "later": []}
    for _ in range(rounds):
        passes = Timed(network)
        model, reference, held_out = setting(passes, shape)

        def whole(
            model: DiffusionModel = model, reference: LatentStatistics = reference, held: HeldOut = held_out
        ) -> None:
            with tempfile.TemporaryDirectory() as folder:
                RecordStore(folder).append(
                    probe_sampling(model, reference, Sampling(n, steps, batch_size=batch), held_out=held)
                )

        for found in ratios.values():
            passes.seconds = 0.0
            found.append(timed(whole) / passes.seconds)
    for which, found in ratios.items():
        print(
            f"| {name}, N={n}, S={steps}: a run's {which} probe ÷ its bare passes | {np.median(found):.3f} "
            f"({min(found):.3f}…{max(found):.3f}) |",
            flush=True,
        )


def against_libraries(n: int, steps: int) -> None:
    """Ours on the stream against what one would write on stored trajectories: PCA of each step, histogram KL of each
    direction; and the same with the intervals that ours have, by leaving out each of 32 groups of trajectories."""
    shape = (4, 64, 64)
    model, reference, _ = setting(Free(), shape)
    kept = [StepKL(), PCAScatter()]
    ours = timed(lambda: probe_sampling(model, reference, Sampling(n, steps, batch_size=n), analyses=kept))
    stored = [torch.randn(n, int(np.prod(shape))).numpy() for _ in range(steps + 1)]

    def kl(before: np.ndarray, after: np.ndarray) -> None:
        counts = []
        for x, y in zip(before.T, after.T, strict=True):
            edges = np.histogram_bin_edges(np.concatenate([x, y]), 32)
            counts.append((np.histogram(x, edges)[0] + 1, np.histogram(y, edges)[0] + 1))
        p, q = np.array(counts).transpose(1, 2, 0)
        entropy(p, q, axis=0)

    def libraries(intervals: bool) -> None:
        for before, after in pairwise(stored):
            PCA(n_components=2).fit_transform(after)
            kl(before, after)
            for group in range(32 if intervals else 0):
                kept = np.arange(n) % 32 != group
                kl(before[kept], after[kept])

    for what, intervals in (("without intervals", False), ("with jackknife intervals, as ours", True)):
        ratio = timed(lambda intervals=intervals: libraries(intervals)) / ours  # type: ignore[misc]
        print(
            f"| D=16384, N={n}, S={steps}: scikit-learn PCA + scipy KL on stored trajectories, {what}, ÷ ours | "
            f"{ratio:.1f} |",
            flush=True,
        )


def exponents(quick: bool) -> None:
    model, reference, _ = setting(Free(), (4, 32, 32))
    kept = [StepKL(), PCAScatter()]

    def cost(n: int, steps: int) -> float:
        return min(
            timed(lambda: probe_sampling(model, reference, Sampling(n, steps, batch_size=n), analyses=kept))
            for _ in range(3)
        )

    sizes, lengths = ([128, 256, 512], [10, 20, 40]) if quick else ([128, 256, 512, 1024], [10, 20, 40, 80])
    for label, xs, ys in (("N", sizes, [cost(n, 20) for n in sizes]), ("S", lengths, [cost(256, s) for s in lengths])):
        slope = np.polyfit(np.log(xs), np.log(ys), 1)[0]
        print(f"| exponent of the analyses' time in {label} ({xs[0]}…{xs[-1]}, D=4096) | {slope:.2f} |", flush=True)


def memory() -> None:
    peaks = {}
    for steps in (10, 100):
        done = subprocess.run(
            [sys.executable, __file__, "--peak", str(steps)], capture_output=True, text=True, check=True
        )
        peaks[steps] = float(done.stdout.strip().splitlines()[-1])
    print(
        f"| peak memory at S=100 ÷ S=10 (D=16384, N=256) | {peaks[100] / peaks[10]:.3f} ({peaks[100]:.0f} MB) |",
        flush=True,
    )


def peak(steps: int) -> None:
    model, reference, _ = setting(Free(), (4, 64, 64))
    probe_sampling(model, reference, Sampling(256, steps), analyses=[StepKL(), PCAScatter()])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        peak(args.peak)
        sys.exit()
    print(f"{Path(__file__).name}, {torch.get_num_threads()} threads\n\n| what | ratio |\n|---|---|")
    quick = args.quick
    overhead(
        "U-Net of configs/families, 2×8×8", families_unet(), (2, 8, 8), 512, 10 if quick else 50, 256, 1 if quick else 3
    )
    small = (64, 3) if quick else (512, 50)
    overhead("small U-Net, 4×64×64", small_unet(4, size=64), (4, 64, 64), *small, batch=64, rounds=1)
    against_libraries(256, 2 if quick else 5)
    exponents(quick)
    memory()
