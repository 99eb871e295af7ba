"""The memorization probe's record: what its numbers mean, and how a verdict reads them."""

from __future__ import annotations

from typing import NamedTuple

from ldmprobe.io.metric import Metric
from ldmprobe.io.record import ProbeRecord

PROBE, MEMORIZED, MEMORIZED_WIDTH = "memorization", "memorized", "memorized_half_width"
BY_HEART = 0.2  # of the way from denoising unseen images as well as seen ones to a perfect copy machine
BAND, BAND_WIDTH = "memorized_band", "memorized_band_half_width"
METRICS = (
    Metric(
        MEMORIZED, "Memorized, of what can be",
        "How far held-out error lies above training error, as a share of how far it lies above the error of a perfect "
        "copy machine, over all noise levels in nats: 0 is nothing by heart, 1 everything.",
        "share", good="lower", ideal=0.0, spread=MEMORIZED_WIDTH, shown="headline",
    ),
    Metric(MEMORIZED_WIDTH, "95 % half-width of what is memorized", "", "share"),
    Metric(f"{BAND}/*", "Memorized within a band", "Of the band of log-SNR that begins there.", "share", good="lower"),
    Metric(f"{BAND_WIDTH}/*", "95 % half-width of that", "", "share", shown="record"),
    Metric(
        "memorization", "Memorized by noise level",
        "How far held-out error lies above training error, as a share of how far it lies above the error of a perfect "
        "copy machine: 0 is nothing by heart, 1 everything. No value where there is next to nothing to gain by heart.",
        "(held-out − training error) ÷ (held-out − memorizer's)", good="lower", ideal=0.0, shown="headline",
    ),
    Metric(
        "memorization_gap", "Held-out error above training error", "With the same noise.",
        "squared ε-error per dimension", good="lower", ideal=0.0, shown="record",
    ),
    Metric("memorizer_mse", "Error of a perfect copy machine on training images", "", "squared ε-error per dimension",
           shown="record"),
)  # fmt: skip


class Memorized(NamedTuple):
    """What is memorized within a band: M, the half-width of its 95 % interval, and the training step it was probed
    at.
    """

    share: float
    half_width: float
    step: int

    @property
    def in_words(self) -> str:
        return f"{self.share:.0%} ± {self.half_width:.0%} of what a perfect copy machine would gain over unseen images"


def memorized_by_band(record: ProbeRecord) -> dict[float, Memorized]:
    """Return what is memorized within each band, by the log-SNR that it begins at; NaN where it is not defined."""
    return {
        float(name.removeprefix(f"{BAND}/logsnr")): Memorized(
            value, record.scalars[name.replace(BAND, BAND_WIDTH, 1)], record.step
        )
        for name, value in record.scalars.items()
        if name.startswith(f"{BAND}/")
    }
