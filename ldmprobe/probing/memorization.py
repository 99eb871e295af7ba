r"""The memorization probe: how far a network has gone from denoising images to knowing its training images by heart.

Training rows and held-out rows are noised alike, by the same noise at the same levels of log-SNR λ, and compared:

.. math:: G(\lambda) = \text{MSE}_\text{held out} - \text{MSE}_\text{training}, \qquad
          M(\lambda) = \frac{G(\lambda)}{\text{MSE}_\text{held out} - \text{MSE}_\text{memorizer}}

The memorizer is the optimal denoiser of the training rows, E[x_0 | z] over them (``Memorizer``), whose error there is
the least that any network can have (arXiv:2506.13763). M is 0 for a network that denoises both alike, and 1 for a
perfect copy machine. Where the memorizer is hardly better than the network on held-out rows, as where noise hides which
image it is, there is nothing to gain by heart, and no M.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ldmprobe.analysis.bands import band_key, bands_of
from ldmprobe.analysis.intervals import clustered_half_width
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.data.identity import MOST_KNOWN
from ldmprobe.diffusion.prediction import EpsilonPrediction
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.ideal_denoisers import Memorizer
from ldmprobe.probing.denoising import log_snr_grid
from ldmprobe.probing.draws import Draws
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.ideals import answering, share_known, without_known
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.memorization_record import (
    BAND,
    BAND_WIDTH,
    BY_HEART,
    MEMORIZED,
    MEMORIZED_WIDTH,
    METRICS,
    PROBE,
)
from ldmprobe.probing.probe import Progress, Ranks, evaluating, no_progress

_LEAST_ROOM = 0.1  # of the held-out error: with less to gain by heart, M is noise


def probe_memorization(
    model: DiffusionModel,
    training: HeldOut,
    held_out: HeldOut,
    reference: LatentStatistics,
    num_draws: int = 512,
    batch_size: int = 256,
    seed: int = 0,
    step: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Denoise training latents and held-out latents with the same noise, and compare.

    Draw i is of row i modulo n of both, n being the smaller number of the two, so that rows make n independent pairs,
    over which the intervals of 95 % are. The ratio's is by linearization.

    Args:
        training: rows that the network was trained on, as they are without augmentation, with their conditions.
        held_out: rows that it was not trained on.
        reference: its latents, of training rows, are the memorizer's, too, besides those of ``training``. Where they
            are but a part of a large training set, the memorizer has less to tell apart, and M is a little too small
            where there is much noise.
        num_draws: noised latents per level, of either kind.

    Returns:
        A record called "memorization", the same on every rank. The provenance holds the ``summary``.

    Raises:
        ConfigurationError: there are fewer than 8 pairs, or held-out rows are among the training rows.
    """
    num_pairs = min(len(training.latents), len(held_out.latents), num_draws)
    if num_pairs < 8:
        raise ConfigurationError(
            f"There are {len(training.latents)} training images, {len(held_out.latents)} held-out ones and {num_draws} "
            "draws to look for memorization with; expected at least 8 of each."
        )
    training.check_reference(reference)
    held_out.check_reference(reference)
    known = torch.cat([training.latents, without_known(reference.latents, training.latents)])
    if share_known(held_out.latents, known) > MOST_KNOWN:
        raise ConfigurationError(
            "Images that are called held out are among the training images, so that memorization cannot be seen; set "
            "the data's `held_out_fraction` or a split of theirs, remove duplicates, or leave out the probe."
        )
    ranks = ranks or Ranks()
    schedule, timesteps = answering(EpsilonPrediction(), model.schedule), log_snr_grid(model)
    memorizer = DiffusionModel(Memorizer(known, schedule).to(model.device), schedule, model.latent_shape)

    def errors_of(asked: DiffusionModel, rows: HeldOut, number: int) -> Tensor:
        """Return the squared errors of the draws, (N, L)."""
        draws = Draws.of(rows.first(num_pairs), num_draws, seed, model.device, ranks)
        errors = draws.squared_errors(asked, timesteps, batch_size)
        progress(number, 3)
        return errors

    with evaluating(model.modules):
        held, trained = errors_of(model, held_out, 1), errors_of(model, training, 2)
        copied = errors_of(memorizer, HeldOut(training.latents, {}), 3)
    log_snr = schedule.log_snr[timesteps]
    nats = torch.from_numpy(nats_per_error(log_snr.numpy(), held_out.latents[0].numel()))
    cluster = torch.arange(num_draws) % num_pairs
    gap, room, levels = held - trained, held - copied, (timesteps, log_snr)

    def share_within(counted: np.ndarray) -> tuple[float, float]:
        weight = nats * torch.from_numpy(counted)
        value, width = share(gap @ weight, room @ weight, held @ weight, cluster)
        return float(value), float(width)

    total, total_width = share_within(np.ones(len(timesteps)))
    bands = {band_key(band.low): share_within(band.share) for band in bands_of(log_snr.numpy())}
    return ProbeRecord(
        PROBE,
        step,
        scalars={
            MEMORIZED: total,
            MEMORIZED_WIDTH: total_width,
            **{f"{BAND}/{name}": value for name, (value, _) in bands.items()},
            **{f"{BAND_WIDTH}/{name}": width for name, (_, width) in bands.items()},
        },
        curves={
            "memorization": Curve.around(*levels, *share(gap, room, held, cluster)),
            "memorization_gap": Curve.around(*levels, gap.mean(0), clustered_half_width(gap, cluster)),
            "memorizer_mse": Curve.around(*levels, copied.mean(0), clustered_half_width(copied, cluster)),
        },
        metrics=METRICS,
        provenance={
            "num_draws": num_draws,
            "num_images": num_pairs,
            "num_known": len(known),
            "seed": seed,
            "weights": model.weights,
            "summary": _in_words(total, total_width, bands.values(), len(known)),
        },
        fingerprints={
            "grid": fingerprint(timesteps, log_snr.float()),
            "reference": reference.fingerprint,
            "codec": fingerprint(model.codec.description),
            "held_out": fingerprint(num_draws, num_pairs, seed, held_out.outline, training.outline),
        },
    )


def share(gap: Tensor, room: Tensor, held: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
    """Return M and the half-width of its 95 % interval, (...); NaN where there is surely no room.

    Args:
        gap: held-out error − training error of each draw, (N, ...).
        room: held-out error − the memorizer's.
        held: held-out error.
        cluster: the pair of rows that each draw is of, (N,).
    """
    mean = room.mean(0)
    value = gap.mean(0) / mean
    width = clustered_half_width(gap - value * room, cluster) / mean.abs()
    sure = mean - clustered_half_width(room, cluster) >= _LEAST_ROOM * held.mean(0)
    return torch.where(sure, value, torch.nan), torch.where(sure, width, torch.nan)


def _in_words(value: float, width: float, bands: Iterable[tuple[float, float]], num_known: int) -> str:
    if not np.isfinite(value):
        return "Memorization cannot be told: a copy machine would hardly be better than the network is."
    found = f"{value:.2f} ± {width:.2f} of what a perfect copy machine of {num_known:,} training images would gain"
    said = "No memorization is measurable"
    if value - width >= BY_HEART:
        said = "Training images are known by heart"
    elif any(share - half_width >= BY_HEART for share, half_width in bands):
        said = "Training images are known by heart at some noise levels"
    elif value - width > 0:
        said = "Training images are denoised better than others, but not by heart"
    return f"{said}: {found}.".replace("-", "−")
