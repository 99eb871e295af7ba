r"""The denoising probe: how well each noise level denoises held-out data, on a grid of log-SNR that no training choice
moves.

Three views of the same forward passes, and no sampling:

.. math:: \text{skill}(\lambda) = 1 - \frac{\text{MSE}_\epsilon(\lambda)}{\text{MMSE}_\text{Gauss}(\lambda)}, \qquad
          \text{nats} = \tfrac12 D\,w(\lambda)\,(\text{MMSE}_\text{Gauss} - \text{MSE}_\epsilon), \qquad R(\lambda)

Skill is 0 for the best *linear* denoiser and below 0 for anything worse. Nats weigh the levels by what they contribute
to the likelihood bound, w being a level's width in log-SNR (``analysis/likelihood.py``). R is the calibration residual
of ``analysis/calibration.py``: the share of the level's loss that a linear correction would still remove. Beside the
linear denoiser stand ideals that know more than a covariance (``probing/ideals.py``), on the same draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldmprobe.analysis.bands import band_key
from ldmprobe.analysis.calibration import NUM_FOLDS, CalibrationSums, calibration
from ldmprobe.analysis.faults import in_words
from ldmprobe.analysis.imbalance import summarize
from ldmprobe.analysis.intervals import clustered_half_width, student
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.record import Curve, PerSample, ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.class_information import CURVE as CLASS_INFORMATION
from ldmprobe.probing.class_information import class_information
from ldmprobe.probing.condition_use import NOTE as CONDITION_USE
from ldmprobe.probing.condition_use import condition_use
from ldmprobe.probing.denoising_record import (
    ERRORS,
    KNOWN,
    LOG_SNR_SPACING,
    METRICS,
    PROBE,
    SQUARE,
    levels_of,
    seen_in_training,
)
from ldmprobe.probing.draws import Draws, Level, answered
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.ideals import compared, ideal_errors
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.outliers import outliers
from ldmprobe.probing.probe import Progress, Ranks, evaluating, no_progress
from ldmprobe.probing.repeatability import CURVE as CHANCE
from ldmprobe.probing.repeatability import NUM_DRAWS as REPEATED
from ldmprobe.probing.repeatability import variance_of_answers

_CONDITION_DRAWS = 128  # whose conditions are swapped and left out


def log_snr_grid(model: DiffusionModel) -> Tensor:
    """The timesteps probed, noisiest first: those nearest to multiples of 0.75 in log-SNR, within the schedule's
    range.
    """
    schedule = model.schedule
    noisiest, cleanest = (schedule.log_snr[schedule.rising[[0, -1]]] / LOG_SNR_SPACING).tolist()
    multiples = torch.arange(math.ceil(noisiest), math.floor(cleanest) + 1)
    timesteps: Tensor = schedule.timesteps_at(LOG_SNR_SPACING * multiples).unique()
    return timesteps.flip(0)


def probe_denoising(
    model: DiffusionModel,
    held_out: HeldOut,
    reference: LatentStatistics,
    num_draws: int = 512,
    batch_size: int = 256,
    seed: int = 0,
    image_loss: bool = False,
    step: int = 0,
    previous: ProbeRecord | None = None,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Denoise held-out latents at each level, with noise fixed per draw.

    Curves have 95 % intervals over images, the residual over folds of them. Per sample there are
    ``denoising_errors`` (levels, draws), for paired comparisons. The provenance holds the ``summary``, one
    sentence, and the ``remarks`` below it (``analysis/faults.py``), the ``log_snr_range`` that the bound covers, and
    ``held_out_in_reference``, the share of the held-out latents that are among the reference's.

    Args:
        num_draws: noised latents per level: each image is drawn as often as it takes, with noise of its own each
            time.
        image_loss: also decode each x̂_0 and compare it with the decoded latent (costs two decodings per draw and
            level).
        previous: the record of the same probe before this one, for progress.

    Returns:
        A record called "denoising", the same on every rank.

    Raises:
        ConfigurationError: fewer draws than 32, or a reference of other latents.
    """
    if num_draws < 4 * NUM_FOLDS:
        raise ConfigurationError(
            f"num_draws is {num_draws}; expected at least {4 * NUM_FOLDS}, for its cross-fitted statistics."
        )
    if len(held_out.latents) < 2:
        raise ConfigurationError(
            f"There is {len(held_out.latents)} held-out image; expected at least 2, better {NUM_FOLDS} or more, for "
            "intervals. Set the data's `held_out_fraction` larger, or name a split of theirs."
        )
    held_out.check_reference(reference)
    timesteps = log_snr_grid(model)
    ranks = ranks or Ranks()
    num_images = len(held_out.latents)
    device, levels = model.device, []
    with evaluating(model.modules):
        draws = Draws.of(held_out, num_draws, seed, device, ranks)
        z0, noise, condition, own = draws.z0, draws.noise, draws.condition, len(draws.image)
        fold = (draws.image % NUM_FOLDS).to(device)
        fold[len(ranks.share(num_draws)) :] = -1  # of none: thrown away
        image_errors = torch.zeros(own, len(timesteps) if image_loss else 0, dtype=torch.float64, device=device)
        errors, products, squares = torch.zeros(3, own, len(timesteps), dtype=torch.float64, device=device)
        offsets = torch.zeros(own, len(timesteps), z0.shape[1], dtype=torch.float64, device=device)
        for k, timestep in enumerate(timesteps.tolist()):
            level = Level.of(model.schedule, timestep)
            sums: CalibrationSums | None = None
            for start in range(0, len(z0), batch_size):
                chunk = slice(start, start + batch_size)
                part = {name: value[chunk] for name, value in condition.items()}
                z_t, x0, epsilon = answered(model, level, z0[chunk], noise[chunk], part)
                if image_loss:
                    difference = model.codec.decode(x0) - model.codec.decode(z0[chunk])
                    image_errors[chunk, k] = difference.double().pow(2).flatten(1).mean(1)
                error = noise[chunk] - epsilon
                errors[chunk, k] = error.double().pow(2).flatten(1).mean(1)
                products[chunk, k] = (noise[chunk].double() * epsilon).flatten(1).mean(1)
                squares[chunk, k] = epsilon.double().pow(2).flatten(1).mean(1)
                offsets[chunk, k] = error.double().flatten(2).mean(2)
                e, z, p = (reference.basis.rotate(value) for value in (error, z_t, epsilon))
                batch_sums = CalibrationSums.from_samples(e, z, p, fold[chunk])
                sums = batch_sums if sums is None else sums + batch_sums
            assert sums is not None
            reduced = (ranks.all_reduce_sum(value) for value in (sums.n, sums.gram, sums.cross, sums.squares))
            levels.append(calibration(CalibrationSums(*reduced)))
            progress(k + 1, len(timesteps))
        squared, product, square, offset, image_squared = map(
            draws.gathered, (errors, products, squares, offsets, image_errors)
        )
        few = Draws.of(held_out, min(num_draws, _CONDITION_DRAWS), seed, device, ranks)
        conditional = (model, held_out, few, squared[: few.number], timesteps, batch_size)
        further = condition_use(*conditional)
        further.update(class_information(*conditional))
        repeated = Draws.of(held_out, min(num_draws, REPEATED), seed, device, ranks)
        variance = variance_of_answers(model, repeated, timesteps)
        ideals, known = ideal_errors(model, held_out, reference, timesteps, num_draws, batch_size, seed, ranks)
    log_snr = model.schedule.log_snr[timesteps]
    dimension = held_out.latents[0].numel()
    nats = torch.from_numpy(nats_per_error(log_snr.numpy(), dimension))
    of_image = torch.arange(num_draws) % num_images
    mse, half_width = squared.mean(0), clustered_half_width(squared, of_image)
    mmse, least_mmse, largest_mmse = reference.basis.optimum.at(log_snr)
    gain = product.mean(0) / square.mean(0)
    gain_width = clustered_half_width(product - gain * square, of_image) / square.mean(0)
    offset_width = clustered_half_width(offset.flatten(1), of_image).view(len(timesteps), -1).pow(2).mean(1).sqrt()
    residual, residual_width, excess = (
        torch.tensor([vars(found)[name] for found in levels], dtype=torch.float64)
        for name in ("residual", "half_width", "excess")
    )

    def curve(value: Tensor, *limits: Tensor) -> Curve:
        return Curve(*(each.numpy() for each in (timesteps, log_snr, value, *limits)))

    def around(value: Tensor, width: Tensor) -> Curve:
        return curve(value, value - width, value + width)

    def between(value: Tensor, width: Tensor, least: Tensor, largest: Tensor) -> Curve:
        """The draws' half-width, and how far the value moves as the linear optimum does, are independent of each
        other.
        """
        return curve(value, value - torch.hypot(width, value - least), value + torch.hypot(width, largest - value))

    curves = {
        "denoising_mse": around(mse, half_width),
        "denoising_mmse": curve(mmse, least_mmse, largest_mmse),
        "denoising_skill": between(
            1 - mse / mmse, half_width / mmse, 1 - mse / least_mmse.clamp(min=1e-300), 1 - mse / largest_mmse
        ),
        "denoising_nats": between(
            nats * (mmse - mse), nats * half_width, nats * (least_mmse - mse), nats * (largest_mmse - mse)
        ),
        "calibration_residual": around(residual, residual_width),
        "calibration_nats": around(nats * excess, nats * residual_width * mse),
        "prediction_gain": around(gain, gain_width),
        SQUARE: curve(square.mean(0)),
        "prediction_offset": around(offset.mean(0).pow(2).mean(1).sqrt(), offset_width),
        CHANCE: curve(variance / mse),
        "prediction_offset_floor": curve(offset_width / student(int(of_image.max()) + 1)),
    }
    by_channel = offset.mean(0)
    parts = {
        "prediction_gain": product / square.mean(0) - gain * square / square.mean(0),
        "prediction_offset": (offset * by_channel).mean(2) / by_channel.pow(2).mean(1).sqrt(),
    }
    curves |= {name: curve(*found) for name, found in compared(squared, ideals, mmse, of_image).items()}
    curves |= further.curves
    if image_loss:
        curves["image_mse"] = around(image_squared.mean(0), clustered_half_width(image_squared, of_image))
    fingerprints = {
        "grid": fingerprint(timesteps, log_snr.float()),
        "reference": reference.fingerprint,
        "codec": fingerprint(model.codec.description),
        "held_out": fingerprint(num_draws, num_images, seed, held_out.outline),
    }
    if previous is not None and previous.fingerprints == fingerprints and previous.step < step:
        before = torch.from_numpy(previous.per_sample[ERRORS].value.copy()).T
        fall = before - squared
        curves["denoising_progress"] = around(nats * fall.mean(0), nats * clustered_half_width(fall, of_image))
    imbalance = summarize(
        log_snr.numpy(), residual.numpy(), residual_width.numpy(), mse.numpy(), nats.numpy(), num_draws
    )
    notes = further.provenance.get("notes", {})
    record = ProbeRecord(
        PROBE,
        step,
        scalars={
            "denoising_bound_nats": float(nats @ mse),
            "denoising_lowest_skill": float(curves["denoising_skill"].value.min()),
            "imbalance_gini": imbalance.gini,
            **{f"imbalance_share/{band_key(band.low)}": band.share for band in imbalance.bands},
            **{f"calibration_residual_band/{band_key(band.low)}": band.residual for band in imbalance.bands},
            **further.scalars,
        },
        curves=curves,
        metrics=METRICS,
        per_sample={ERRORS: PerSample(timesteps.numpy(), log_snr.numpy(), squared.T.numpy())},
        provenance={
            "num_draws": num_draws,
            "num_images": num_images,
            "seed": seed,
            "weights": model.weights,
            KNOWN: known,
            "dimension": dimension,
            "log_snr_range": [float(log_snr.min()), float(log_snr.max())],
            "linear_optimum_known_to_log_snr": min(reference.basis.optimum.known_to, 99.0),
            "progress_since_step": previous.step if "denoising_progress" in curves and previous is not None else None,
            "notes": notes,
        },
        fingerprints=fingerprints,
    )

    found = levels_of(record)
    record.curves.update(outliers(found, record.curves, parts, of_image))
    summary, remarks = in_words(found, imbalance.bands)
    said = [seen_in_training(record), notes.get(CONDITION_USE), remarks, notes.get(CLASS_INFORMATION)]
    record.provenance.update(summary=summary, remarks=" ".join(filter(None, said)))
    return record
