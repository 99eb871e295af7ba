"""The denoising probe's ideals: what optimal denoisers of the training latents leave of its own draws.

They are run once for all probes of a run that have the same draws, and compared with the network draw by draw: twins
with the same finite-sample error.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from ldmprobe.analysis.intervals import clustered_half_width
from ldmprobe.data.identity import MOST_KNOWN
from ldmprobe.diffusion.prediction import EpsilonPrediction, Prediction
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.metric import Metric
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.ideal_denoisers import IdealDenoiser, Memorizer, MixtureDenoiser
from ldmprobe.probing.draws import Draws
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.probe import Ranks, evaluating

MEMORIZER, MIXTURE = "memorizer", "mixture"
METRICS = (
    Metric(
        "ideal_skill", "best denoiser known without a network",
        "The skill of the best of three: the linear denoiser, the optimum of a mixture of Gaussians, and that of a "
        "memorizer; the latter two on the same draws.",
        "skill: 1 − MSE ÷ linear optimum", shown="record",
    ),
    Metric(
        "excess_over/*", "Error above that of an ideal", "Paired draw by draw; below 0 the network is better.",
        "squared ε-error per dimension", shown="record",
    ),
)  # fmt: skip
_SAME = 1e-3  # of the mean distance between latents: closer ones are of one image


def ideal_denoisers(reference: LatentStatistics, table: NoiseSchedule) -> dict[str, IdealDenoiser]:
    """Return the ideals that can be made of a reference's latents, by name; they answer what ``table`` says."""
    if not len(reference.latents):
        return {}
    rotation = reference.basis.rotation
    found: dict[str, IdealDenoiser] = {MEMORIZER: Memorizer(reference.latents, table)}
    if MIXTURE not in reference.ideals:
        mixture = MixtureDenoiser.fit(reference.latents, rotation, table)
        reference.ideals[MIXTURE] = () if mixture is None else (mixture.weights, mixture.means, mixture.variances)
    if not reference.ideals[MIXTURE]:
        return found
    weights, means, variances = reference.ideals[MIXTURE]
    return {**found, MIXTURE: MixtureDenoiser(weights, means, variances, rotation, table)}


def answering(prediction: Prediction, schedule: NoiseSchedule) -> NoiseSchedule:
    """Return the same schedule for a denoiser with this kind of answer, whatever the network's is."""
    same = copy(schedule)
    same.prediction = prediction
    return same


def ideal_errors(
    model: DiffusionModel,
    held_out: HeldOut,
    reference: LatentStatistics,
    timesteps: Tensor,
    num_draws: int,
    batch_size: int,
    seed: int,
    ranks: Ranks,
) -> tuple[dict[str, Tensor], float]:
    """Return by ideal the squared ε-errors of the probe's draws, (N, L), float64, on the CPU, and the share of the
    held-out latents that are in the reference; from ``reference`` if they are there already. There are no ideals where
    that is more than ``MOST_KNOWN``: a memorizer knows it all.
    """
    key = fingerprint(timesteps, model.schedule.log_snr.float(), num_draws, seed, held_out.outline)
    if key not in reference.ideal_errors:
        errors: dict[str, Tensor] = {}
        known = share_known(held_out.latents, reference.latents)
        reference.ideal_errors[key] = errors, known
        if known <= MOST_KNOWN:
            draws = Draws.of(HeldOut(held_out.latents, {}), num_draws, seed, model.device, ranks)
            table = answering(EpsilonPrediction(), model.schedule)
            with evaluating([]):
                for name, denoiser in ideal_denoisers(reference, table).items():
                    ideal = DiffusionModel(denoiser.to(model.device), denoiser.schedule, model.latent_shape)
                    errors[name] = draws.squared_errors(ideal, timesteps, batch_size)
    return reference.ideal_errors[key]


def compared(
    squared: Tensor, ideals: dict[str, Tensor], linear: Tensor, cluster: Tensor
) -> dict[str, tuple[Tensor, ...]]:
    """Return the curves of ``METRICS``, those that have an interval with its ends; none without ideals.

    Args:
        squared: the network's squared errors of the draws, (N, L).
        ideals: theirs.
        linear: the error of the best linear denoiser, (L,).
        cluster: the image of each draw, (N,).
    """
    if not ideals:
        return {}
    skills = torch.stack([1 - errors.mean(0) / linear for errors in ideals.values()])
    found: dict[str, tuple[Tensor, ...]] = {"ideal_skill": (skills.amax(0).clamp(min=0),)}
    for name, errors in ideals.items():
        excess, width = (squared - errors).mean(0), clustered_half_width(squared - errors, cluster)
        found[f"excess_over/{name}"] = excess, excess - width, excess + width
    return found


def share_known(latents: Tensor, reference: Tensor) -> float:
    """Return the share of the latents that are in the reference; above ``MOST_KNOWN`` it is no accident."""
    return 1 - len(without_known(latents, reference)) / max(len(latents), 1)


def without_known(latents: Tensor, reference: Tensor) -> Tensor:
    """Return those of the latents that are not in the reference."""
    if not len(latents) or not len(reference):
        return latents
    distance = torch.cdist(latents.flatten(1).double(), reference.flatten(1).double())
    return latents[distance.amin(1) >= _SAME * distance.mean()]
