r"""The objective as the optimizer sees it: weight w(λ), density p(λ) and their product, over bins of log-SNR λ.

The loss is :math:`\int p(\lambda)\,w(\lambda)\;\mathrm{E}\|\hat\epsilon - \epsilon\|^2\,\mathrm{d}\lambda`,
so that p w alone, up to a factor, says what is trained, whatever is drawn, weighted or predicted. An even p w is the
variational bound (Kingma & Gao, 2023, arXiv:2303.00848).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldmprobe.diffusion.objective import TimestepObjective
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, ProbeRecord
from ldmprobe.probing.probe import evaluating

PROBE = "objective"
BIN_WIDTH = 0.5
LOG_SNR_LIMIT = 12.0
"""Levels beyond are left out: a zero, or nearly zero, terminal SNR has an infinite, or huge, weight on ε and nothing to
be seen of the data."""

FloatArray = NDArray[np.float64]

METRICS = (
    Metric("timestep_mean_log_snr", "Mean log-SNR of the draws", "", "log-SNR", shown="headline"),
    Metric("emphasis_mean_log_snr", "Mean log-SNR of the weight on squared ε-errors", "", "log-SNR", shown="headline"),
    Metric(
        "timestep_density", "Density of the draws, p", "The share of draws per unit of log-SNR; it integrates to 1.",
        "p: share of draws per log-SNR", ideal="even_density", log=True, shown="headline",
    ),
    Metric("even_density", "of timesteps drawn evenly", "", "p: share of draws per log-SNR", log=True, shown="record"),
    Metric(
        "loss_weight", "Weight on the squared ε-error, w",
        "The mean over the bin's draws of what the squared ε-error is multiplied by, the sampler's factor and a "
        "learned uncertainty included. Normalized weights have mean 1 on the network's own prediction, not on ε.",
        "w: weight on the squared ε-error", log=True, shown="headline",
    ),
    Metric(
        "training_emphasis", "What is trained, w·p",
        "The share of all weight on squared ε-errors per unit of log-SNR; even, it would be the likelihood bound. A "
        "share of the weight, not of the loss: what the loss makes of a level is this times its error.",
        "w·p: share of all weight per log-SNR", log=True, shown="headline",
    ),
)  # fmt: skip


def objective_record(objective: TimestepObjective, step: int = 0) -> ProbeRecord:
    """Density, weight and their product in bins of equal width, nearly .5, between the schedule's ends (at most ±12).

    Each timestep's share is spread evenly over the log-SNR that is nearer to it than to its neighbors; the first and
    the last have one neighbor, so that evenly drawn timesteps look up to twice as dense there.

    Returns:
        A record called "objective", a function of ``objective`` alone; its curves' ``log_snr`` are the bins' middles,
        noisiest first.
    """
    schedule, sampler, weighting = objective.schedule, objective.sampler, objective.weighting
    with evaluating([sampler, weighting]):
        p, weights = objective.probabilities(), epsilon_weights(objective)
    within = schedule.log_snr.abs() <= LOG_SNR_LIMIT
    log_snr = schedule.log_snr[within].numpy()
    edges = np.linspace(log_snr.min(), log_snr.max(), max(1, round(np.ptp(log_snr) / BIN_WIDTH)) + 1)
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    masses = (p, p * weights, torch.ones_like(p))
    drawn, weighed, even = (_per_bin(log_snr, mass[within].numpy(), edges) for mass in masses)
    density, emphasis, even_density = (mass / mass.sum() / width for mass in (drawn, weighed, even))
    mean_weight = np.divide(weighed, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0)
    no_timestep = np.full(len(middle), -1)
    return ProbeRecord(
        PROBE,
        step,
        scalars={
            "timestep_mean_log_snr": float((density * width * middle).sum()),
            "emphasis_mean_log_snr": float((emphasis * width * middle).sum()),
        },
        curves={
            "timestep_density": Curve(no_timestep, middle, density),
            "even_density": Curve(no_timestep, middle, even_density),
            "loss_weight": Curve(no_timestep, middle, mean_weight),
            "training_emphasis": Curve(no_timestep, middle, emphasis),
        },
        metrics=METRICS,
        provenance={
            "unit": "weight on the squared ε-error, densities per unit of log-SNR",
            "weighting": type(weighting).__name__,
            "timesteps": type(sampler).__name__,
            "prediction_type": schedule.prediction.name,
            "normalized": objective.normalize,
            "draws_left_out": float(p[~within].sum()),
        },
        fingerprints={"grid": fingerprint(edges.astype(np.float32))},
    )


def draws_beside_even(record: ProbeRecord, log_snr: FloatArray) -> FloatArray:
    """Return how often each level of ``log_snr`` (L,) is drawn: ÷ how often it would be if all timesteps were alike,
    (L,).
    """
    drawn, even = record.curves["timestep_density"], record.curves["even_density"].value
    found: FloatArray = np.interp(log_snr, drawn.log_snr, drawn.value / even)
    return found


def epsilon_weights(objective: TimestepObjective) -> Tensor:
    """Return what the loss multiplies the squared ε-error of each timestep by, shape (T,), float64 on the CPU; infinite
    where ε cannot be read off the prediction. It is the loss's derivative, so that a learned weighting counts as it
    stands.
    """
    schedule = objective.schedule
    device = next((parameter.device for parameter in objective.weighting.parameters()), None)
    errors = torch.ones(schedule.num_timesteps, dtype=torch.float64, device=device, requires_grad=True)
    with torch.enable_grad():
        losses = objective.losses(errors, torch.arange(schedule.num_timesteps))
        (weights,) = torch.autograd.grad(losses.sum(), [errors])
    return weights.cpu() / schedule.prediction.epsilon_error_scale(schedule.log_snr)


def _per_bin(log_snr: FloatArray, mass: FloatArray, edges: FloatArray) -> FloatArray:
    """The mass in each bin (B,), of masses (K,) at falling log-SNR (K,)."""
    level, mass = log_snr[::-1], mass[::-1]
    borders = np.concatenate([level[:1], (level[1:] + level[:-1]) / 2, level[-1:]])
    return np.diff(np.interp(edges, borders, np.concatenate([[0.0], mass.cumsum()])))
