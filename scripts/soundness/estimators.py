"""Bias and coverage of the KL, over sample numbers, dimensions, truths, spectra and tails."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from ldmprobe.analysis.divergence import paired_gaussian_kl
from ldmprobe.analysis.intervals import jackknife_interval
from ldmprobe.analysis.moments import PairedMoments

SIZES = ((64, 16), (64, 256), (64, 16384), (256, 256), (1024, 256), (1024, 4096), (4096, 16), (4096, 256))


def estimators(repeats: int) -> None:
    print(
        "| form | spectrum | tails | N | D | true KL | mean estimate | bias | coverage of 95 % | raw reads |\n"
        + "|---" * 10
        + "|"
    )
    for tails in ("Gaussian", "Student t5"):
        for spectrum in ("white", "power law"):
            for n, d in SIZES:
                for truth in (0.0, 0.1, 1.0, 10.0, 100.0):
                    if tails != "Gaussian" and (spectrum == "white" or truth not in (0.0, 1.0, 10.0) or n * d > 2**18):
                        continue
                    if n * d > 2**18 and truth not in (0.0, 10.0):
                        continue
                    rounds = max(8, min(repeats, 2**25 // (n * d)))
                    estimate_row("paired", spectrum, tails, n, d, truth, rounds)
                    if truth in (0.0, 10.0) and n * d <= 2**18 and tails == "Gaussian":
                        estimate_row("independent", spectrum, tails, n, d, truth, rounds)


def estimate_row(form: str, spectrum: str, tails: str, n: int, d: int, truth: float, rounds: int) -> None:
    generator = torch.Generator().manual_seed(n * 1_000_003 + d * 31 + int(truth * 10))
    scale = torch.ones(d) if spectrum == "white" else torch.arange(1, d + 1).float() ** -0.5
    # The KL is shared evenly over directions: ½(r − 1 − ln r) = truth/D, with the samples of one side r times the
    # other's variance.
    ratio = 1.0 if truth == 0 else brentq(lambda r: 0.5 * (r - 1 - np.log(r)) - truth / d, 1.0, 1e6)
    rho = 0.99
    found, covered, raw = [], [], []
    for _ in range(rounds):
        y = draw(tails, n, d, generator)
        x = draw(tails, n, d, generator)
        if form == "paired":
            x = rho * y + (1 - rho**2) ** 0.5 * x
        x, y = x * scale * ratio**0.5, y * scale
        moments = PairedMoments.from_samples(x, y, torch.arange(n))
        total, left_out = moments.total(), moments.leave_one_out()
        if form == "paired":
            value, replicates = paired_gaussian_kl(total).sum(), paired_gaussian_kl(left_out).sum(-1)
        else:
            value = independent(total).sum()
            replicates = independent(left_out).sum(-1)
        lower, upper = jackknife_interval(value, replicates)
        found.append(float(value))
        covered.append(float(lower) <= truth <= float(upper))
        r = total.var_x / total.var_y
        raw.append(float((0.5 * (r - 1 - r.log() + (total.mean_x - total.mean_y) ** 2 / total.var_y)).sum()))
    error = np.std(found) / rounds**0.5
    bias = f"{np.mean(found) - truth:+.3g} ± {1.96 * error:.1g}"
    print(
        f"| {form} | {spectrum} | {tails} | {n} | {d} | {truth:g} | {np.mean(found):.4g} | {bias} | "
        f"{np.mean(covered):.2f} of {rounds} | {np.mean(raw):.3g} |",
        flush=True,
    )


def independent(m: PairedMoments) -> Tensor:
    """KL(x ‖ y) per direction as of two independent sets of samples, which pairs are not; corrected for their number."""
    inflation = (m.n - 1) / (m.n - 3)
    ratio = m.var_x / m.var_y / inflation
    gap = (m.mean_x - m.mean_y) ** 2 / m.var_y / inflation - (ratio + 1) / m.n
    return 0.5 * (ratio - 1 - (m.var_x / m.var_y).log() + gap)


def draw(tails: str, n: int, d: int, generator: torch.Generator) -> Tensor:
    z = torch.randn(n, d, generator=generator)
    if tails == "Gaussian":
        return z
    chi2 = sum(torch.randn(n, d, generator=generator) ** 2 for _ in range(5))
    return z * (3 / chi2) ** 0.5  # Student t with 5 degrees of freedom, variance 1
