r"""Which noise levels are measurably at fault in one probe of one run, how much that weighs, and what could still be
hidden.

Five things are asked of every level, none of which needs another run to compare with. A denoiser that is optimal for
its data passes all of them: no known denoiser is better, neither the linear one (its skill is at least 0) nor an ideal
made of training latents; its gain E[ε·ε_θ]/E[ε_θ²] is 1, the mean of its error is 0, a linear correction removes
nothing of it (R = 0), and it answers alike when it is asked the same thing twice. The first three are tested at each of
L levels with Bonferroni's correction,

.. math:: |\text{deviation}| > t_{G-1}\!\left(1 - \frac{0.05}{2 \cdot n L}\right)
    \widehat{\text{se}} + \text{least that is told of},

n being three and the number of ideals, and G that of independent images; R, whose cross-fit makes it read low, by its
own interval over bands of log-SNR; of two answers to the same latents, any difference is real.

What is found is weighed in nats of the likelihood bound: the heaviest is the headline. What is less than half a per
cent of the bound comes last, except a gain or an offset that moves the noisy latents by one per cent of their scale:
such a fault bends every sample, and costs next to no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit

from ldmprobe.analysis.bands import bands_of, runs_of
from ldmprobe.analysis.imbalance import Band
from ldmprobe.analysis.intervals import student

FALSE_ALARMS = 0.05  # of a perfect denoiser's probes, in all three tests together
NEGLIGIBLE = 0.005  # of the bound
LEAST_RESIDUAL, LEAST_DEVIATION = 0.01, 0.002  # of R, and of gain and offset: what is less is not told of
OF_SCALE = 0.01  # of the latents' scale: what a gain or an offset moves, and is told of whatever it weighs
_TESTS = 3


@dataclass(frozen=True)
class Levels:
    """One denoising probe, level by level from noisy to clean; arrays of shape (L,), with the half-widths of their 95 %
    intervals.

    Attributes:
        log_snr, mse: the levels, and the squared ε-error per dimension there.
        nats: of the likelihood bound per unit of that error.
        linear_mse: the best linear denoiser's error.
        skill, skill_width: 1 − mse/linear_mse.
        gain, gain_width: E[ε·ε_θ]/E[ε_θ²].
        square: E[ε_θ²] per dimension.
        offset, offset_width: root mean square over channels of the error's mean, in units of the noise.
        num_images: G, how many images the draws are of.
        excess: by ideal, the error above its own, paired draw by draw, and the half-width of that.
        chance: the share of the error that differs from one answer to the same latents to the next.
    """

    log_snr: np.ndarray
    mse: np.ndarray
    nats: np.ndarray
    linear_mse: np.ndarray
    skill: np.ndarray
    skill_width: np.ndarray
    gain: np.ndarray
    gain_width: np.ndarray
    square: np.ndarray
    offset: np.ndarray
    offset_width: np.ndarray
    num_images: int
    excess: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    chance: np.ndarray = field(default_factory=lambda: np.zeros(1))

    @property
    def bound(self) -> float:
        """The probed part of the likelihood bound, in nats."""
        return float(self.nats @ self.mse)

    def moved_by_offset(self, offset: np.ndarray) -> np.ndarray:
        r"""Return what predictions that are shifted by ``offset`` (L,) of the noise move of the scale of noisy latents,
        of data of variance 1: times :math:`\sigma / \sqrt{\alpha^2 + \sigma^2}`. Next to the data no sample shows it.
        """
        moved: np.ndarray = offset * np.sqrt(expit(-self.log_snr))
        return moved

    def moved_by_gain(self, deviation: np.ndarray) -> np.ndarray:
        """Return the same for a gain that is off by ``deviation`` (L,)."""
        return self.moved_by_offset(np.abs(deviation) * np.sqrt(self.square))

    def moved_by_residual(self, residual: np.ndarray) -> np.ndarray:
        """Return the same for a share ``residual`` (L,), 0 or more, of the loss."""
        return self.moved_by_offset(np.sqrt(residual * self.mse))


@dataclass(frozen=True)
class Fault:
    """A fault of some levels.

    Attributes:
        text: a sentence without its stop and what it costs.
        nats: what it costs.
        levels: at which levels it is, (L,).
        moved: what of the latents' scale it moves, if it is of gain or offset.
    """

    text: str
    nats: float
    levels: np.ndarray
    moved: float = 0.0

    @property
    def weighed(self) -> str:
        """The text with what it costs."""
        return f"{self.text} ({in_nats(self.nats)} nats)"


def find_faults(levels: Levels, bands: Sequence[Band]) -> tuple[list[Fault], list[Fault]]:
    """Return the faults that count, heaviest first, and then those that weigh next to nothing. All levels are finite.

    Args:
        bands: what R says, from ``summarize``.
    """
    least = NEGLIGIBLE * levels.bound
    recoverable = [band for band in bands if band.lower > LEAST_RESIDUAL]
    total = sum(band.excess_nats for band in recoverable)
    weighty = [b for b in recoverable if b.excess_nats >= least or b.excess_nats >= 0.2 * total >= 0.2 * least]
    found = [
        *_recoverable(weighty, levels),
        *worse_than_linear(levels),
        *worse_than_ideal(levels),
        *wrong_gain(levels),
        *offset_from_zero(levels),
        *answers_by_chance(levels),
    ]
    found.sort(key=lambda fault: -fault.nats)
    heavy = [fault for fault in found if fault.nats >= least]
    of_scale = [fault for fault in found if fault.nats < least and fault.moved >= OF_SCALE]
    light = [fault for fault in found if fault.nats < least and fault.moved < OF_SCALE]
    return [*heavy, *of_scale], [*light, *_measurable([b for b in recoverable if b not in weighty], levels)]


def in_words(levels: Levels, bands: Sequence[Band]) -> tuple[str, str]:
    """The headline, one sentence, and the remarks below it.

    Args:
        bands: what R says, from ``summarize``.
    """
    lost = ~np.isfinite(levels.mse)
    if lost.any():
        return (
            f"Predictions have NaN or Inf in them at {where(lost, levels.log_snr)}: nothing can be said of these.",
            "",
        )
    counted, light = find_faults(levels, bands)
    recoverable = [band for band in bands if band.lower > LEAST_RESIDUAL]
    bound = f"of the held-out bound's {in_nats(levels.bound)} nats"
    headline = f"No noise level has a measurable fault that weighs {NEGLIGIBLE:.1%} {bound} or more."
    if counted:
        headline = f"{counted[0].text}: {in_nats(counted[0].nats)} {bound}."
    remarks = [f"{fault.weighed}." for fault in counted[1:]]
    if light:
        told = "; ".join(f"{fault.weighed[0].lower()}{fault.weighed[1:]}" for fault in light)
        remarks.append(f"Measurable, but next to nothing in the bound: {told}.")
    rest = [band for band in bands if band not in recoverable]
    if rest:
        most, nats = max(band.upper for band in rest), sum(max(band.upper_nats, 0.0) for band in rest)
        remarks.append(
            "No fault that a linear correction would mend could be hidden "
            f"{'elsewhere' if recoverable else 'anywhere'} that is larger than {max(most, 0.0):.1%} of a band's loss "
            f"({in_nats(nats)} nats in all)."
        )
    return headline, " ".join(remarks)


def worse_than_linear(levels: Levels) -> list[Fault]:
    """The levels whose held-out error is surely above the best linear denoiser's."""
    flagged = levels.skill + critical(levels, sides=1) * levels.skill_width < 0
    if not flagged.any():
        return []
    nats = float((levels.nats * (levels.mse - levels.linear_mse))[flagged].sum())
    return [Fault(f"Worse than a linear denoiser at {where(flagged, levels.log_snr)}", nats, flagged)]


def worse_than_ideal(levels: Levels) -> list[Fault]:
    """The levels that are no worse than a linear denoiser, but surely worse than another ideal."""
    excess = above_known(levels)
    linear = sum((fault.levels for fault in worse_than_linear(levels)), np.zeros(len(levels.mse), bool))
    flagged = (excess > 0) & ~linear
    if not flagged.any():
        return []
    text = f"Worse than a denoiser that needs no network at {where(flagged, levels.log_snr)}"
    return [Fault(text, float((levels.nats * excess)[flagged].sum()), flagged)]


def above_known(levels: Levels) -> np.ndarray:
    """Return by how much each level's error is above that of the best denoiser known, (L,): the linear one and the
    ideals; 0 where it is not surely above that of any.
    """
    found = sum((fault.levels * (levels.mse - levels.linear_mse) for fault in worse_than_linear(levels)), 0.0)
    for excess, width in levels.excess.values():
        found = np.maximum(found, np.where(excess - critical(levels, sides=1) * width > 0, excess, 0.0))
    return np.zeros(len(levels.mse)) + found


def wrong_gain(levels: Levels) -> list[Fault]:
    """The levels whose predictions are surely too large, and those whose predictions are surely too small."""
    deviation = levels.gain - 1
    sure = np.abs(deviation) - critical(levels, sides=2) * levels.gain_width > LEAST_DEVIATION
    found = []
    for word, flagged in (("large", sure & (deviation < 0)), ("small", sure & (deviation > 0))):
        if flagged.any():
            nats = float((levels.nats * deviation**2 * levels.square)[flagged].sum())
            text = (
                f"Predictions are too {word} at {where(flagged, levels.log_snr)}, gain {_range(levels.gain[flagged])}"
            )
            found.append(Fault(text, nats, flagged, float(levels.moved_by_gain(deviation)[flagged].max())))
    return found


def offset_from_zero(levels: Levels) -> list[Fault]:
    """The levels whose error surely has a mean."""
    # Of a root mean square over channels, t standard errors are exceeded at most as often as of a single mean.
    flagged = levels.offset - critical(levels, sides=2) * levels.offset_width > LEAST_DEVIATION
    if not flagged.any():
        return []
    nats = float((levels.nats * levels.offset**2)[flagged].sum())
    text = (
        f"Predictions are shifted at {where(flagged, levels.log_snr)}, by {_range(levels.offset[flagged])} of the noise"
    )
    return [Fault(text, nats, flagged, float(levels.moved_by_offset(levels.offset)[flagged].max()))]


def answers_by_chance(levels: Levels) -> list[Fault]:
    """The levels whose answers to the same latents differ, by more than rounding does."""
    chance = np.broadcast_to(levels.chance, levels.mse.shape)
    flagged = chance >= LEAST_RESIDUAL
    if not flagged.any():
        return []
    text = (
        f"Asked the same thing twice at {where(flagged, levels.log_snr)}, the network answers otherwise: "
        f"up to {chance.max():.0%} of its error is chance"
    )
    return [Fault(text, float((levels.nats * levels.mse * chance)[flagged].sum()), flagged)]


def _recoverable(bands: Sequence[Band], levels: Levels) -> list[Fault]:
    if not bands:
        return []
    named = sorted(bands, key=lambda band: -band.excess_nats)
    parts = [f"{band.residual:.0%} of the loss at log-SNR {band.name}" for band in named]
    text = f"A linear correction would still remove {listed(parts)}"
    return [Fault(text, sum(band.excess_nats for band in bands), _in(bands, levels))]


def _measurable(bands: Sequence[Band], levels: Levels) -> list[Fault]:
    """The bands with R above 0 that weigh next to nothing, without R: a large share of nothing reads like a large
    fault.
    """
    if not bands:
        return []
    named = listed([band.name for band in bands])
    text = f"A linear correction would remove something at log-SNR {named}"
    return [Fault(text, sum(band.excess_nats for band in bands), _in(bands, levels))]


def critical(levels: Levels, sides: int) -> float:
    """Return the half-widths of a 95 % interval that a level has to be off by, so that all levels of all tests raise
    few false alarms.
    """
    groups = max(levels.num_images, 2)
    tail = FALSE_ALARMS / (sides * (_TESTS + len(levels.excess)) * len(levels.log_snr))
    return student(groups, tail) / student(groups)


def where(flagged: np.ndarray, log_snr: np.ndarray) -> str:
    """Return a name of the levels (L,) that are flagged, such as "log-SNR −5.3…−3 and +6…+7.1"."""
    return "every noise level" if flagged.all() else f"log-SNR {listed(runs_of(flagged, log_snr))}"


def _in(bands: Sequence[Band], levels: Levels) -> np.ndarray:
    lows = {band.low for band in bands}
    found: np.ndarray = np.any([band.inside for band in bands_of(levels.log_snr) if band.low in lows], axis=0)
    return found


def _range(values: np.ndarray) -> str:
    ends = [f"{value:.3f}" if abs(value - 1) < 0.02 else f"{value:.2f}" for value in (values.min(), values.max())]
    return " to ".join(dict.fromkeys(ends))


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them: "a, b and c"; "" of none."""
    return " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), *names[-1:]])


def in_nats(value: float) -> str:
    """Return a number of nats, with two digits or more that mean something."""
    if abs(value) < 0.01:
        return "less than 0.01"
    return f"{value:,.{2 if abs(value) < 1 else 1 if abs(value) < 100 else 0}f}"
