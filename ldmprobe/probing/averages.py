"""The probe of averages: which length of a moving average of the weights denoises held-out latents best, over all noise
levels and within each band of them.

All denoise the same latents with the same noise, so that what differs between draws cancels in the differences of their
squared ε-errors, in nats of the likelihood bound (``analysis/comparison.py``). What they are compared with is the model
with its own weights, as it was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

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
from ldmprobe.probing.draws import Draws
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import Progress, evaluating, no_progress

PROBE, BEST = "averages", "averages_best_length"
METRICS = (
    Metric(BEST, "Best length of an average", "σ_rel of the average with the lowest held-out bound.", "σ_rel"),
    Metric(
        "averages_gain_nats", "Gained by the best average",
        "By how much its held-out bound is lower than that of the weights as trained.", "nats", good="higher",
        ideal=0.0, spread="averages_gain_nats_half_width", shown="headline",
    ),
    Metric("averages_gain_nats_half_width", "95 % half-width of what was gained", "", "nats"),
    Metric("averages_band_length/*", "Best length within a band", "Of the band of log-SNR that begins there.", "σ_rel"),
    Metric(
        "averages_bound_gain", "Which average of the weights",
        "By how much the held-out bound is lower than that of the weights as trained, paired draw by draw, for each "
        "length: the width of the average's profile, as a share of all steps so far. Take the highest; where it is at "
        "an end, try further.",
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
        """Return its squared errors, (levels, draws)."""
        with evaluating(model.modules):
            draws = Draws.of(held_out, num_draws, seed, model.device)
            return draws.squared_errors(model, timesteps, batch_size).T.numpy()

    own, found = errors_of(trained), []
    for k, length in enumerate(lengths):
        found.append(errors_of(averages[length]()))
        progress(k + 1, len(lengths))
    log_snr = trained.schedule.log_snr[timesteps].numpy()
    nats = nats_per_error(log_snr, held_out.latents[0].numel())
    gains = gains_by_band(log_snr, own, found, image, nats)
    best = _best([gain[-1] for gain in gains])
    over_best = gains_by_band(log_snr, found[best], found, image, nats)
    totals = [gain[-1] for gain in gains]
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
            "summary": _sentences(lengths, best, totals[best], over_best, trained.weights),
        },
        fingerprints={
            "grid": fingerprint(timesteps, torch.from_numpy(log_snr).float()),
            "codec": fingerprint(trained.codec.description),
            "held_out": fingerprint(num_draws, len(held_out.latents), seed, held_out.means),
        },
    )


def _best(gains: Sequence[BandGain]) -> int:
    return int(np.nanargmax([gain.gain if np.isfinite(gain.gain) else -np.inf for gain in gains]))


def _sentences(
    lengths: Sequence[float], best: int, total: BandGain, over_best: Sequence[Sequence[BandGain]], weights: str
) -> str:
    """Return in words which length is best, over what, and where another one is.

    Args:
        total: the best one's gain over the weights as trained.
        over_best: the gains of each length over the best one, by band.
    """
    if not np.isfinite(total.gain):
        return "Predictions have NaN or Inf in them: nothing can be said of averages."
    others = [k for k in range(len(lengths)) if k != best]
    close = [f"{lengths[k]:g}" for k in others if not over_best[k][-1].significant]
    below = "below" if total.gain >= 0 else "above"
    found = f"{abs(total.gain):,.2f} ± {total.half_width:,.2f} nats {below} the weights as trained ({weights})"
    parts = [f"Of {len(lengths)} averages the one of length {lengths[best]:g} has the lowest held-out bound: {found}."]
    parts += [f"Not to be told from it: {', '.join(close)}."] if close else []
    if best in (0, len(lengths) - 1):
        parts.append(f"It is at the end of what was tried; try {'shorter' if best == 0 else 'longer'} ones.")
    for k, band in enumerate(over_best[best][:-1]):
        there = max(others, key=lambda other: over_best[other][k].gain)
        gain = over_best[there][k]
        if gain.significant and gain.gain > 0:
            parts.append(
                f"At log-SNR {band.name} {lengths[there]:g} is better, by {gain.gain:,.2f} ± {gain.half_width:,.2f} "
                "nats."
            )
    return " ".join(parts)
