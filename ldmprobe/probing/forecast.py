"""Forecast: how far the held-out bound falls if training goes on as it has, by the records of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldmprobe.analysis.bands import bands_of
from ldmprobe.analysis.faults import in_nats
from ldmprobe.analysis.power_law import FEWEST, extrapolate
from ldmprobe.io.record import ProbeRecord
from ldmprobe.probing.denoising_record import errors_of, log_snr_of, nats_of

_WINDOW = 8  # probes from before the last step ÷ this are of another regime: warm-up, and the first features


@dataclass(frozen=True)
class Forecast:
    """What a band of noise levels, or the whole bound, will lose until a step.

    Attributes:
        until: the training step.
        nats: the fall from the last probe.
        lower, upper: the ends of its 95 % interval; below 0 is a rise.
        of_known_rate: whether the records tell the learning rate, which then is unchanged.
    """

    until: int
    nats: float
    lower: float
    upper: float
    of_known_rate: bool = True

    @property
    def in_words(self) -> str:
        """A sentence that says so of twice the steps."""
        most, rate = in_nats(max(self.upper, 0.0)), "at an unchanged learning rate"
        if not self.of_known_rate:
            rate = "if the learning rate, which the records do not tell, is and stays the same"
        if self.lower <= 0:
            return f"Twice the steps would bring {most} nats more at most, {rate}."
        span = f"{in_nats(self.lower)} to {most}"
        return f"Twice the steps would bring {in_nats(self.nats)} nats more ({span}), {rate}."


def forecast(records: Sequence[ProbeRecord], until: int) -> list[Forecast]:
    """Return what each band will lose, noisy to clean, and last all of them together; nothing where there are too few
    probes, a network has diverged, or the learning rate changes from probe to probe: what it does next is not known.

    The probes of one run have the same images and noise, so that what they scatter by is training's alone.

    Args:
        records: whole denoising records of one run that are measured alike, in order of training step.
        until: a step after the last.
    """
    last = records[-1]
    used = [record for record in records if record.step >= max(last.step / _WINDOW, 1)]
    rates = {record.provenance.get("learning_rate") for record in used}
    if len(used) < FEWEST or len(rates) > 1:
        return []
    steps = np.array([float(record.step) for record in used])
    found = []
    for course in _courses(used):
        if not np.isfinite(course).all():
            return []
        ahead = extrapolate(steps, course, until)
        fall, lower, upper = (course[-1] - value for value in (ahead.value, ahead.upper, ahead.lower))
        found.append(Forecast(until, fall, lower, upper, rates != {None}))
    return found


def measured_fall(before: ProbeRecord, after: ProbeRecord) -> np.ndarray:
    """Return what each band has lost from one probe to another, and last all of them together, in nats."""
    first, last = _courses([before, after]).T
    fall: np.ndarray = first - last
    return fall


def _courses(records: Sequence[ProbeRecord]) -> np.ndarray:
    """Return the bound of each band, and last of all levels, over probes: (bands + 1, K), in nats."""
    levels = np.stack([nats_of(record) * errors_of(record).mean(1) for record in records], 1)
    return np.stack([*(band.sum(levels) for band in bands_of(log_snr_of(records[-1]))), levels.sum(0)])
