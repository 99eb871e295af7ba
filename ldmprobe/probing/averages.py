r"""The probe of averages: which length of a moving average of the weights denoises held-out latents best, for samples,
for the likelihood bound, and within each band of noise levels.

All denoise the same latents with the same noise, so that what differs between draws cancels in the differences of their
squared ε-errors, in nats of the bound (``analysis/comparison.py``). What they are compared with is the model with its
own weights, as it was trained. The bound weighs all of log-SNR alike, and so, for the most part, fine detail next to
the data, which no sample shows. For samples the errors are those of the same integral with weight σ² = sigmoid(−λ):

.. math:: \tfrac12 D \int \sigma^2(\lambda)\, \text{MSE}_\epsilon(\lambda)\, d\lambda

by which an error is carried along the probability flow to the data (docs/MEASUREMENT.md, "Where more training pays").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy.special import expit

from ldmprobe.analysis.bands import band_key
from ldmprobe.analysis.comparison import BandGain, gains_by_band
from ldmprobe.analysis.intervals import clustered_mean
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import log_snr_grid
from ldmprobe.probing.draws import held_out_errors
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import Progress, no_progress

PROBE, BEST, FOR_BOUND = "averages", "averages_best_length", "averages_bound_length"
METRICS = (
    Metric(
        BEST, "Best length of an average",
        "σ_rel of the average that is best for samples: that of the lowest held-out error weighted by σ².", "σ_rel",
        shown="headline",
    ),
    Metric(FOR_BOUND, "Best length for the bound", "σ_rel of the average with the lowest held-out bound.", "σ_rel"),
    Metric(
        "averages_gain_nats", "Gained by the best average",
        "By how much the held-out bound of the average that is best for samples is lower than that of the weights as "
        "trained.",
        "nats", good="higher", ideal=0.0, spread="averages_gain_nats_half_width", shown="headline",
    ),
    Metric("averages_gain_nats_half_width", "95 % half-width of what was gained", "", "nats"),
    Metric("averages_band_length/*", "Best length within a band", "Of the band of log-SNR that begins there.", "σ_rel"),
    Metric(
        "averages_bound_gain", "Which average of the weights",
        "By how much the held-out bound is lower than that of the weights as trained, paired draw by draw, for each "
        "length: the width of the average's profile, as a share of all steps so far. The highest is the bound's "
        "best; where it is at an end, try further.",
        "nats gained over the weights as trained", good="higher", ideal=0.0, along="length of the average (σ_rel)",
        places="averages_length", shown="headline",
    ),
    Metric("averages_length", "Length of the average", "", "σ_rel", along="number", shown="record"),
    Metric(
        "averages_nats/*", "Which average, by noise level",
        "The same at each noise level: a line for each length. Where lines cross, noise levels want different ones.",
        "nats per level, gained", good="higher", ideal=0.0, pool="sum", shown="headline",
    ),
)  # fmt: skip


def probe_averages(
    trained: DiffusionModel,
    averages: Mapping[float, Callable[[], DiffusionModel]],
    held_out: HeldOut,
    num_draws: int = 512,
    batch_size: int = 256,
    seed: int = 0,
    step: int = 0,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Denoise held-out latents by the model with each average of its weights, and compare.

    Curves have 95 % intervals over images. The provenance holds the ``summary``, some sentences.

    Args:
        trained: the model with its own weights.
        averages: what loads the model with the average of this length (σ_rel); called one after the other, so that one
            at a time is in memory.
        num_draws: noised latents per level: the same that the denoising probe has with this seed.

    Returns:
        A record called "averages".

    Raises:
        ConfigurationError: fewer than two lengths, or one of them cannot be loaded.
    """
    if len(averages) < 2:
        raise ConfigurationError(f"There is {len(averages)} length to compare; expected two or more.")
    lengths = sorted(averages)
    timesteps = log_snr_grid(trained)
    image = np.arange(num_draws) % len(held_out.latents)

    def errors_of(model: DiffusionModel) -> np.ndarray:
        return held_out_errors(model, held_out, num_draws, seed, timesteps, batch_size)

    own, found = errors_of(trained), []
    for k, length in enumerate(lengths):
        found.append(errors_of(averages[length]()))
        progress(k + 1, len(lengths))
    log_snr = trained.schedule.log_snr[timesteps].numpy()
    nats = nats_per_error(log_snr, held_out.latents[0].numel())
    seen = nats * expit(-log_snr)  # of an error, what samples show
    gains = gains_by_band(log_snr, own, found, image, nats)
    totals = [gain[-1] for gain in gains]
    best = _best([gain[-1] for gain in gains_by_band(log_snr, own, found, image, seen)])
    for_samples = [gain[-1] for gain in gains_by_band(log_snr, found[best], found, image, seen)]
    for_bound = _best(totals)
    over_best = gains_by_band(log_snr, found[for_bound], found, image, nats)
    value, width = (np.array([vars(total)[name] for total in totals]) for name in ("gain", "half_width"))
    curves = {"averages_length": Curve.along(lengths), "averages_bound_gain": Curve.along(value, width)}
    for length, errors in zip(lengths, found, strict=True):
        change = clustered_mean(own - errors, image)
        curves[f"averages_nats/{length:g}"] = Curve.around(
            timesteps, log_snr, nats * change.value, nats * change.half_width
        )
    by_band = {
        f"averages_band_length/{band_key(band.low)}": lengths[_best([gain[k] for gain in gains])]
        for k, band in enumerate(gains[0][:-1])
    }
    return ProbeRecord(
        PROBE,
        step,
        scalars={
            BEST: lengths[best],
            FOR_BOUND: lengths[for_bound],
            "averages_gain_nats": totals[best].gain,
            "averages_gain_nats_half_width": totals[best].half_width,
            **by_band,
        },
        curves=curves,
        metrics=METRICS,
        provenance={
            "lengths": lengths,
            "num_draws": num_draws,
            "num_images": len(held_out.latents),
            "seed": seed,
            "weights": trained.weights,
            "summary": " ".join(
                [
                    _for_samples(lengths, best, totals[best], for_samples, trained.weights),
                    _for_the_bound(lengths, for_bound, totals[for_bound], over_best),
                ]
            ),
        },
        fingerprints={
            "grid": fingerprint(timesteps, torch.from_numpy(log_snr).float()),
            "codec": fingerprint(trained.codec.description),
            "held_out": fingerprint(num_draws, len(held_out.latents), seed, held_out.means),
        },
    )


def _best(gains: Sequence[BandGain]) -> int:
    return int(np.nanargmax([gain.gain if np.isfinite(gain.gain) else -np.inf for gain in gains]))


def _for_samples(
    lengths: Sequence[float], best: int, total: BandGain, over_best: Sequence[BandGain], weights: str
) -> str:
    """Return in words which length is best for samples, and what it gains of the bound.

    Args:
        total: its gain over the weights as trained, in nats of the bound.
        over_best: the gains of each length over it, in what samples show.
    """
    if not np.isfinite(total.gain):
        return "Predictions have NaN or Inf in them: nothing can be said of averages."
    below = "below" if total.gain >= 0 else "above"
    found = f"{abs(total.gain):,.2f} ± {total.half_width:,.2f} nats {below} that of the weights as trained ({weights})"
    parts = [
        f"Of {len(lengths)} averages the one of length {lengths[best]:g} is best for samples; its bound is {found}.",
        _close(lengths, best, over_best),
    ]
    if best in (0, len(lengths) - 1):
        parts.append(f"It is at the end of what was tried; try {'shorter' if best == 0 else 'longer'} ones.")
    return " ".join(part for part in parts if part)


def _for_the_bound(
    lengths: Sequence[float], best: int, total: BandGain, over_best: Sequence[Sequence[BandGain]]
) -> str:
    """Return in words which length has the lowest bound, and where another one is better."""
    if not np.isfinite(total.gain):
        return ""
    parts = [
        f"The lowest bound is that of length {lengths[best]:g}.",
        _close(lengths, best, [gains[-1] for gains in over_best]),
    ]
    others = [k for k in range(len(lengths)) if k != best]
    for k, band in enumerate(over_best[best][:-1]):
        there = max(others, key=lambda other: over_best[other][k].gain)
        gain = over_best[there][k]
        if gain.significant and gain.gain > 0:
            parts.append(
                f"At log-SNR {band.name} {lengths[there]:g} is better, by {gain.gain:,.2f} ± {gain.half_width:,.2f} "
                "nats."
            )
    return " ".join(part for part in parts if part)


def _close(lengths: Sequence[float], best: int, over_best: Sequence[BandGain]) -> str:
    """Return in words which lengths cannot be told from the best one."""
    close = [f"{length:g}" for k, length in enumerate(lengths) if k != best and not over_best[k].significant]
    return f"Not to be told from it: {', '.join(close)}." if close else ""
