r"""The probe of averages: which length of a moving average of the weights denoises held-out latents best, for samples,
for the likelihood bound, and within each band of noise levels.

All denoise the same latents with the same noise, so that what differs between draws cancels in the differences of their
squared ε-errors, in nats of the bound (``analysis/comparison.py``). What they are compared with is the model with its
own weights, as it was trained. The bound weighs all of log-SNR alike, and so, for the most part, fine detail next to
the data, which no sample shows. For samples the errors are those of the same integral with weight σ² = sigmoid(−λ):

.. math:: \tfrac12 D \int \sigma^2(\lambda)\, \text{MSE}_\epsilon(\lambda)\, d\lambda

by which an error is carried along the probability flow to the data (docs/MEASUREMENT.md, "Where more training pays").
Where there is a feature network, samples judge first: each average makes them from the same noises, and of those whose
FID is within one standard error of the lowest, of the paired difference, errors choose, which are the less noisy of the
two (the rule of Breiman et al., Classification and Regression Trees, 1984, section 3.4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn

from ldmprobe.analysis.bands import band_key
from ldmprobe.analysis.comparison import BandGain, gains_by_band
from ldmprobe.analysis.intervals import NORMAL, clustered_mean
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import log_snr_grid
from ldmprobe.probing.draws import held_out_errors
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.paired_distance import above, distances, near_lowest, refuse_too_few_samples
from ldmprobe.probing.probe import Progress, no_progress
from ldmprobe.probing.quality import sampled_features
from ldmprobe.probing.real_features import RealFeatures, checked_fingerprint, describe_network
from ldmprobe.probing.sampling import Sampling

PROBE, BEST, FOR_BOUND = "averages", "averages_best_length", "averages_bound_length"
METRICS = (
    Metric(
        BEST, "Best length of an average",
        "σ_rel of the average that is best for samples: that of the lowest held-out error weighted by σ², where FID "
        "was measured among those within one standard error of the lowest.",
        "σ_rel",
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
    Metric(
        "averages_fid", "FID of each average", "Of samples from the same noises, over length.", "FID, lower is better",
        good="lower", along="length of the average (σ_rel)", places="averages_length", shown="headline",
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
    real: RealFeatures | None = None,
    feature_network: nn.Module | None = None,
    sampling: Sampling | None = None,
) -> ProbeRecord:
    """Denoise held-out latents by the model with each average of its weights, and compare.

    Curves have 95 % intervals over images. The provenance holds the ``summary``, some sentences.

    Args:
        trained: the model with its own weights.
        averages: what loads the model with the average of this length (σ_rel); called one after the other, so that one
            at a time is in memory.
        num_draws: noised latents per level: the same that the denoising probe has with this seed.
        real: features of real images, for FID; default: none is measured.
        feature_network: what they are of, images (N, C, H, W) in [−1, 1] → features (N, F).
        sampling: how each average samples, for FID; default: 1,024 samples in 20 steps.

    Returns:
        A record called "averages".

    Raises:
        ConfigurationError: fewer than two lengths, one of them cannot be loaded, the features are of another network,
            or fewer samples than groups can be made of.
    """
    sampling = sampling or Sampling(1024, 20)
    if real is not None and feature_network is not None:
        checked_fingerprint(feature_network, real)
        refuse_too_few_samples(sampling.num_samples)
    if len(averages) < 2:
        raise ConfigurationError(f"There is {len(averages)} length to compare; expected two or more.")
    lengths = sorted(averages)
    timesteps = log_snr_grid(trained)
    image = np.arange(num_draws) % len(held_out.latents)

    def errors_of(model: DiffusionModel) -> np.ndarray:
        return held_out_errors(model, held_out, num_draws, seed, timesteps, batch_size)

    own, found, fids = errors_of(trained), [], []
    for k, length in enumerate(lengths):
        averaged = averages[length]()
        found.append(errors_of(averaged))
        if real is not None and feature_network is not None:
            drawn = sampled_features(averaged, feature_network, sampling, sampling.levels(averaged))
            fids.append(distances(real.features, drawn))
        progress(k + 1, len(lengths))
    log_snr = trained.schedule.log_snr[timesteps].numpy()
    nats = nats_per_error(log_snr, held_out.latents[0].numel())
    seen = nats * expit(-log_snr)  # of an error, what samples show
    gains = gains_by_band(log_snr, own, found, image, nats)
    totals = [gain[-1] for gain in gains]
    errors_saved = [gain[-1].gain for gain in gains_by_band(log_snr, own, found, image, seen)]
    if any(bool(fid[0].isfinite()) for fid in fids):
        lowest, near = near_lowest(fids)
        best = near[_best([errors_saved[k] for k in near])]
        close = [k for k, fid in enumerate(fids) if k != best and above(fid, fids[best]) <= NORMAL]
        why = f"is best for samples: its FID, {_fid(fids[best])}, is the lowest"
        if best != lowest:
            why = (
                f"is best for samples: its FID, {_fid(fids[best])}, is within one standard error of the lowest, "
                f"{_fid(fids[lowest])} of {lengths[lowest]:g}, and its held-out error is less"
            )
    else:
        best = _best(errors_saved)
        why = "is best for samples by its held-out errors, since no FID is finite" if fids else "is best for samples"
        over_best = [gain[-1] for gain in gains_by_band(log_snr, found[best], found, image, seen)]
        close = [k for k, gain in enumerate(over_best) if k != best and not gain.significant]
    for_bound = _best([total.gain for total in totals])
    over_bound = gains_by_band(log_snr, found[for_bound], found, image, nats)
    value, width = (np.array([vars(total)[name] for total in totals]) for name in ("gain", "half_width"))
    curves = {"averages_length": Curve.along(lengths), "averages_bound_gain": Curve.along(value, width)}
    if fids:
        curves["averages_fid"] = Curve.along(np.array([float(fid[0]) for fid in fids]))
    for length, errors in zip(lengths, found, strict=True):
        change = clustered_mean(own - errors, image)
        curves[f"averages_nats/{length:g}"] = Curve.around(
            timesteps, log_snr, nats * change.value, nats * change.half_width
        )
    by_band = {
        f"averages_band_length/{band_key(band.low)}": lengths[_best([gain[k].gain for gain in gains])]
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
            **({} if real is None else {"real": real.source, **sampling.provenance(trained)}),
            **({} if feature_network is None else {"feature_network": describe_network(feature_network)}),
            "summary": " ".join(
                [
                    _for_samples(lengths, best, why, totals[best], close, trained.weights),
                    _for_the_bound(lengths, for_bound, totals[for_bound], over_bound),
                ]
            ),
        },
        fingerprints={
            "grid": fingerprint(timesteps, torch.from_numpy(log_snr).float()),
            "codec": fingerprint(trained.codec.description),
            "held_out": fingerprint(num_draws, len(held_out.latents), seed, held_out.outline),
            **({} if real is None else {"features": real.network, "real_images": real.images}),
        },
    )


def _best(values: Sequence[float]) -> int:
    """Return where the highest is; one that is not finite is the lowest."""
    return int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))


def _fid(fid: Tensor) -> str:
    return f"{float(fid[0]):.3g}"


def _for_samples(
    lengths: Sequence[float], best: int, why: str, total: BandGain, close: Sequence[int], weights: str
) -> str:
    """Return in words which length is best for samples, and what it gains of the bound.

    Args:
        why: what it is best in.
        total: its gain over the weights as trained, in nats of the bound.
        close: the lengths that cannot be told from it.
    """
    if not np.isfinite(total.gain):
        return "Predictions have NaN or Inf in them: nothing can be said of averages."
    below = "below" if total.gain >= 0 else "above"
    found = f"{abs(total.gain):,.2f} ± {total.half_width:,.2f} nats {below} that of the weights as trained ({weights})"
    parts = [
        f"Of {len(lengths)} averages the one of length {lengths[best]:g} {why}; its bound is {found}.",
        _close(lengths, close),
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
        _close(lengths, [k for k, gains in enumerate(over_best) if k != best and not gains[-1].significant]),
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


def _close(lengths: Sequence[float], close: Sequence[int]) -> str:
    return f"Not to be told from it: {', '.join(f'{lengths[k]:g}' for k in close)}." if close else ""
