"""What the records of one run know of each band of noise levels: how wrong it still is, and how it has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldmprobe.analysis.bands import bands_of
from ldmprobe.analysis.comparison import BandGain, gains_by_band
from ldmprobe.analysis.faults import (
    LEAST_RESIDUAL,
    NEGLIGIBLE,
    Fault,
    Levels,
    above_known,
    answers_by_chance,
    critical,
    find_faults,
    in_nats,
    where,
)
from ldmprobe.diffusion.timesteps import RARELY
from ldmprobe.io.record import ProbeRecord
from ldmprobe.probing.denoising_record import (
    errors_of,
    half_width_of,
    image_of_draw,
    is_untrained,
    levels_of,
    log_snr_of,
    nats_of,
    residual_bands,
)
from ldmprobe.probing.objective import draws_beside_even
from ldmprobe.probing.outliers import OUTLIER_MOVES, OUTLIERS, Outlier
from ldmprobe.probing.probe_before import well_apart

_LASTS = 0.8  # of it a probe later: planted faults have kept .85 or more, the humps of healthy networks .72 or less
_VISIBLE = 0.9  # the error of the linear optimum or of the network, where a denoiser has something to go by


@dataclass(frozen=True)
class Rise:
    """A band's held-out error has risen since its best probe, by more than probes scatter.

    Attributes:
        nats: by how much.
        best: the training step of the best probe.
    """

    nats: float
    best: int


@dataclass(frozen=True)
class BandEvidence:
    """What is known of a band.

    Attributes:
        name, low, high: the band.
        nats: its part of the likelihood bound.
        recoverable: nats that are still to be had, at least.
        in_sight: those of them at levels where noise can be seen (``_visible``).
        hidden: further nats that a linear correction could remove, at most.
        untrained: what keeps its levels from being trained, in words; "" where nothing is known to.
        by_chance: what of its answers is chance, in words; "" where they are the same each time.
        moved: what of the latents' scale a gain or an offset surely moves, at some level.
        lost: whether predictions are NaN or Inf somewhere in it.
        useless: whether some level's error is surely above that of predicting no noise at all.
        faults: what the last probe finds in it that counts, and what does not.
        stands_out: by how much its levels are worse than neighbors on both sides, in words; "" where they are not.
        gain: since the probe that it is compared with (``probe_before.py``); None where there is none.
        begun: whether that is the untrained network's, from which an error may rise before it falls.
        rise: since the best probe; None where there is none.
    """

    name: str
    low: float
    high: float
    nats: float
    recoverable: float
    in_sight: float
    hidden: float
    moved: float
    lost: bool
    useless: bool
    faults: tuple[Fault, ...]
    light: tuple[Fault, ...]
    stands_out: str
    untrained: str
    by_chance: str
    gain: BandGain | None
    begun: bool
    rise: Rise | None


def gather(records: Sequence[ProbeRecord], objective: ProbeRecord | None = None) -> tuple[list[BandEvidence], str]:
    """Return what is known of each band, noisy to clean, and what stands out in all of them.

    Args:
        records: whole denoising records of one run that are measured alike, in order of training step.
        objective: the record of what is drawn.
    """
    same_before = records[-2] if len(records) > 1 else None
    records = well_apart(records)
    last, previous = records[-1], records[-2] if len(records) > 1 else None
    levels = levels_of(last)
    drawn = np.ones(len(levels.mse)) if objective is None else draws_beside_even(objective, levels.log_snr)
    rare, frozen = drawn < RARELY, _frozen(same_before, last)
    lost, chance = ~np.isfinite(levels.mse), answers_by_chance(levels)
    counted, light = ([], []) if lost.any() else find_faults(levels, residual_bands(last))
    visible = _visible(levels)
    recoverable = _recoverable(levels, last, (visible, visible & rare))
    width = half_width_of(last.curves["denoising_mse"])
    sure = critical(levels, sides=2)
    moved = np.maximum(
        levels.moved_by_gain(np.maximum(np.abs(levels.gain - 1) - sure * levels.gain_width, 0.0)),
        levels.moved_by_offset(levels.offset - sure * levels.offset_width),
    )
    moved = np.where(visible, moved, 0.0)
    useless = (levels.mse - critical(levels, sides=1) * width > 1) & visible
    gains = [None] * len(recoverable) if previous is None else _gains(previous, last)
    outstanding = [
        np.where(visible & (kind.moved(levels, height) >= OUTLIER_MOVES), height, 0.0)
        for kind, height in zip(OUTLIERS, _outstanding(records), strict=True)
    ]
    found = []
    for band, (at_least, in_sight, unseen, more), gain in zip(
        bands_of(levels.log_snr), recoverable, gains, strict=False
    ):
        here = band.inside
        found.append(
            BandEvidence(
                name=band.name,
                low=band.low,
                high=band.high,
                nats=float(band.sum(levels.nats * levels.mse)),
                recoverable=at_least,
                in_sight=in_sight,
                hidden=more,
                moved=float(moved[here].max()),
                lost=bool(lost[here].any()),
                useless=bool(useless[here].any()),
                faults=tuple(fault for fault in counted if (fault.levels & here).any()),
                light=tuple(fault for fault in light if (fault.levels & here).any()),
                stands_out=_told(outstanding, here, levels.log_snr),
                by_chance=next((f.weighed for f in chance if (f.levels & here & visible).any()), ""),
                untrained=_untrained(frozen[here], drawn[here & rare], unseen, levels.bound),
                gain=gain,
                begun=previous is not None and is_untrained(previous),
                rise=_rise(records, band.share),
            )
        )
    return found, _told(outstanding, np.ones(len(levels.mse), bool), levels.log_snr)


def _visible(levels: Levels) -> np.ndarray:
    """Return at which levels a denoiser has something to go by, (L,). Next to the data ε is hardly to be seen:
    predictions are small, the error of any network lies about 1, and what of it could still go is nats that no sample
    shows. Nothing there is at fault.
    """
    found: np.ndarray = np.fmin(levels.mse, levels.linear_mse) < _VISIBLE
    return found


def _frozen(before: ProbeRecord | None, after: ProbeRecord) -> np.ndarray:
    """Return which levels answer as they did, (L,): none where all do, and nothing was trained in between."""
    errors = errors_of(after)
    same = np.zeros(len(errors), bool) if before is None else (errors_of(before) == errors).all(1)
    return same & ~same.all()


def _untrained(frozen: np.ndarray, rare: np.ndarray, nats: float, bound: float) -> str:
    """Return what keeps levels of a band from being trained: they are ``frozen``, or so ``rare`` among the draws that
    ``nats`` of the bound are still to be had there.
    """
    if frozen.any():
        return "answers have not changed at all since the probe before, while others have"
    if rare.size and nats >= NEGLIGIBLE * bound:
        often = f"1/{1 / rare.mean():.0f}" if rare.mean() > 0 else "0"
        return f"levels are drawn {often} times as often as evenly, and {in_nats(nats)} nats could still go there"
    return ""


def _recoverable(levels: Levels, record: ProbeRecord, places: tuple[np.ndarray, ...]) -> list[tuple[float, ...]]:
    """Return what each band could still lose at least, by a linear correction or by the best denoiser known in place of
    it, how much of that at the levels of each of ``places``, and what more a linear correction could remove at most;
    in nats.
    """
    by_ideal = levels.nats * above_known(levels)
    by_correction = levels.nats * levels.mse * record.curves["calibration_residual"].value
    found = []
    for residual, band in zip(residual_bands(record), bands_of(levels.log_snr), strict=True):
        ways = [by_ideal, by_correction] if residual.lower > LEAST_RESIDUAL else [by_ideal]
        at_least, *of_it = (
            max(0.0, *(float(band.sum(way * at)) for way in ways)) for at in (np.ones(len(levels.mse)), *places)
        )
        found.append((at_least, *of_it, max(residual.upper_nats - at_least, 0.0)))
    return found


def _gains(before: ProbeRecord, after: ProbeRecord) -> Sequence[BandGain | None]:
    """Return what each band has gained, and last all of them together."""
    levels, image = levels_of(after), image_of_draw(after)
    return gains_by_band(levels.log_snr, errors_of(before), [errors_of(after)], image, nats_of(after))[0]


def _outstanding(records: Sequence[ProbeRecord]) -> list[np.ndarray]:
    """Return for each kind of outlier how far each level stands out from both sides (``humps``), where it did so a
    probe before and has hardly become less: what training is about to mend does. An untrained network
    tells nothing.
    """
    found = []
    for kind in OUTLIERS:
        height = _humps(records[-1], kind)
        if len(records) > 1:
            before = np.zeros_like(height) if is_untrained(records[-2]) else _humps(records[-2], kind)
            height = np.where((height <= 2 * before) & (height >= _LASTS * before), height, 0.0)
        found.append(np.where(height > kind.least, height, 0.0))
    return found


def _humps(record: ProbeRecord, kind: Outlier) -> np.ndarray:
    found: np.ndarray = np.nan_to_num(record.curves[kind.name].value, nan=-np.inf)
    return found


def _told(outstanding: Sequence[np.ndarray], inside: np.ndarray, log_snr: np.ndarray) -> str:
    """Return which levels are worse than others on both sides of them, and by how much; "" if none are."""
    heights = [np.where(inside, height, 0.0) for height in outstanding]
    parts = [kind.words.format(height.max()) for kind, height in zip(OUTLIERS, heights, strict=True) if height.any()]
    if not parts:
        return ""
    place = where(np.any(heights, axis=0), log_snr)
    return f"noise levels on either side of {place} do better: {', '.join(parts)}"


def _rise(records: Sequence[ProbeRecord], share: np.ndarray) -> Rise | None:
    """Return the rise of a band, of which each level has a ``share``, since the best probe if the last two probes are
    both surely above it, by more than three times what probes scatter about a smooth course (their second differences).
    """
    trained = [record for record in records if not is_untrained(record)]
    if len(trained) < 3:
        return None
    weights, inside = share * nats_of(trained[-1]), share > 0
    course = np.array([float(weights @ np.nan_to_num(errors_of(record).mean(1), nan=np.inf)) for record in trained])
    best = int(np.argmin(course))
    if best > len(trained) - 3:
        return None
    scatter = float(np.median(np.abs(np.diff(course[best:], 2)))) / 6**0.5
    rise = float(course[-2:].min() - course[best])
    image, compared = image_of_draw(trained[-1]), (trained[best], *trained[-2:])
    log_snr, first, *last_two = (each[inside] for each in (log_snr_of(trained[-1]), *map(errors_of, compared)))
    gains = (gains_by_band(log_snr, first, [errors], image, weights[inside])[0][-1] for errors in last_two)
    sure = all(gain.adjusted < 0.01 for gain in gains)
    return Rise(float(course[-1] - course[best]), trained[best].step) if sure and rise > 3 * scatter else None
