"""Perfect denoisers of Gaussian data, over spectra, dimensions and sizes of the reference: is any accused?"""

from __future__ import annotations

import numpy as np
import torch

from known_denoisers import SHAPES, SPECTRA, perfect_data, perfect_probes
from ldmprobe.analysis.bands import BAND_WIDTH
from ldmprobe.analysis.spectrum import LinearOptimum, Ridges, gaussian_mmse


def optimum(seeds: int) -> None:
    """Print what the reference adds to a perfect denoiser's skill: its skill beside the estimated optimum, 1 −
    MMSE/estimate, where beside the true one it is 0."""
    print(
        "| spectrum | D | N/D | mean over seeds (standard error) | root mean square of one | levels whose interval "
        "holds the truth |"
    )
    print("|---" * 6 + "|")
    levels = torch.arange(-5.25, 7.1, BAND_WIDTH / 4, dtype=torch.float64)
    for spectrum in SPECTRA:
        for shape in SHAPES:
            for per_dimension in (2, 4, 16):
                skills, held = [], []
                for seed in range(seeds):
                    directions, variance = perfect_data(spectrum, shape, seed)
                    d = len(variance)
                    generator = torch.Generator().manual_seed(seed)
                    x = torch.randn(per_dimension * d, d, generator=generator, dtype=torch.float64) * variance.sqrt()
                    x = x @ directions.T
                    found = LinearOptimum.of_sample(Ridges.of(x - x.mean(0)), len(x), x.var(0))
                    error, lower, upper = found.at(levels)
                    truth = gaussian_mmse(variance, levels)
                    skills.append((1 - truth / error).numpy())
                    held.append(((lower <= truth) & (truth <= upper)).numpy())
                mean, error = np.mean(skills, 0), np.std(skills, 0) / seeds**0.5
                worst = np.abs(mean).argmax()
                print(
                    f"| {spectrum} | {d} | {per_dimension} | {mean[worst]:+.4f} ({error[worst]:.4f}) "
                    f"| {np.square(skills).mean(0).max() ** 0.5:.4f} | {np.mean(held):.0%} |",
                    flush=True,
                )


def perfect(seeds: int) -> None:
    """A level is accused where the interval of its skill lies below 0. The rows with N/D below 2 have levels at which
    the latents cannot tell the linear optimum: there the interval holds all that is possible. Steps whose ideal the
    reference cannot tell from 0 are left out."""
    print(
        "| spectrum | D | N/D | skill, mean over seeds | levels accused | praised | KL ÷ ideal | gap − ideal | levels "
        "accused |"
    )
    print("|---" * 9 + "|")
    total = np.zeros(3)
    for spectrum in SPECTRA:
        for shape in SHAPES:
            for per_dimension in (0.5, 1, 2, 4, 16):
                skills, ratios, gaps, wrong = [], [], [], []
                for seed in range(seeds):
                    denoising, sampled = perfect_probes(spectrum, shape, per_dimension, seed)
                    skill, gap = denoising.curves["denoising_skill"], sampled.curves["marginal_gap"]
                    ideal, kl = sampled.curves["marginal_gap_ideal"], sampled.curves["step_kl"]
                    skills.append(skill.value)
                    ratios.append(kl.value / sampled.curves["step_kl_ideal"].value)
                    gaps.append(gap.value - ideal.value)
                    accused = gap.lower > ideal.upper
                    wrong.append([(skill.upper < 0).mean(), (skill.lower > 0).mean(), accused.mean()])
                low, middle, praised = np.mean(wrong, 0)
                total += [low, praised, 1]
                mean, ratio, gap_mean = (
                    np.mean(skills, 0),
                    np.ma.masked_invalid(ratios).mean(0),
                    np.ma.masked_invalid(gaps).mean(0),
                )
                print(
                    f"| {spectrum} | {np.prod(shape)} | {per_dimension:g} | {mean.min():+.3f} … {mean.max():+.3f} | "
                    f"{low:.1%} | {middle:.1%} | {ratio.min():.3f} … {ratio.max():.3f} | {np.abs(gap_mean).max():.4f} "
                    f"| {praised:.1%} |",
                    flush=True,
                )
    print(
        f"\nLevels accused in all: by skill {total[0] / total[2]:.1%}, by the marginal gap {total[1] / total[2]:.1%}."
    )
