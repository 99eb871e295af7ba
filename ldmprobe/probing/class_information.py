r"""Class information: what a noisy latent says of its condition, by noise level, and where guidance is of use.

.. math:: I(c; z_\lambda) = \tfrac12 D \int_{-\infty}^{\lambda} \big( \text{MMSE}_\epsilon(\lambda' \mid \text{null}) -
          \text{MMSE}_\epsilon(\lambda' \mid c) \big)\, d\lambda'

by the I-MMSE relation (Guo, Shamai & Verdú, 2005, eq. 1; Kong et al., 2023, arXiv:2302.03792) with the errors of a
network for those of the exact posteriors. Of classes that images tell apart, all of it together is the entropy of the
classes, ln K for K that are equally frequent. What a network has above that is its own: a null condition, which it sees
in few of its training samples, denoised worse than it could be. From the level on where the condition has told as much
as it can, counted from the noisy side, the difference is that alone.

Guidance adds w − 1 times the difference of both answers. Where the condition says nothing that difference is error of
the network, multiplied, and the pass for it is wasted. The interval advised for ``IntervalGuidance`` (Kynkäänniemi et
al., 2024, arXiv:2404.07724) is the shortest that holds 90 % of the information: of all intervals that hold as much it
leads through the fewest noise levels, and so leaves out where there is least of it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ldmprobe.analysis.intervals import clustered_half_width
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses.base import Findings
from ldmprobe.probing.draws import Draws
from ldmprobe.probing.held_out import HeldOut

CURVE, TOTAL = "class_information", "class_information_nats"
SHARE = 0.9  # of the information, that the interval holds
METRICS = (
    Metric(
        CURVE, "Where the condition tells something",
        "How much the held-out error rises without the condition, in nats per unit of log-SNR: what the image gains "
        "there from being told its condition. Guidance is of use where this is above 0.",
        "nats per unit of log-SNR", good="higher", ideal=0.0, shown="headline",
    ),
    Metric(
        TOTAL, "Information of the condition",
        "Over all levels. Of K equally frequent classes that images tell apart it is ln K; above that the null "
        "condition is denoised worse than it could be.",
        "nats", good="higher", spread=f"{TOTAL}_half_width",
    ),
    Metric(f"{TOTAL}_half_width", "95 % half-width of it", "", "nats"),
    Metric("guidance_interval/low", "Noisiest level to guide", "The advised interval's lower end.", "log-SNR"),
    Metric("guidance_interval/high", "Cleanest level to guide", "The advised interval's upper end.", "log-SNR"),
)  # fmt: skip


def class_information(
    model: DiffusionModel, held_out: HeldOut, draws: Draws, squared: Tensor, timesteps: Tensor, batch_size: int
) -> Findings:
    """Denoise draws of the denoising probe without their conditions, and compare; find nothing for a model that was
    never trained without one. A note advises the interval for guidance, where there is one.

    Args:
        draws: the probe's first N, of the held-out latents.
        squared: their squared ε-errors with their own conditions, (N, L).
        timesteps: the levels, (L,), from noisy to clean.
    """
    if not held_out.condition or not model.conditioning.knows_null:
        return Findings()
    null = model.conditioning.without(model.device)(draws.condition)
    rise = replace(draws, condition=null).squared_errors(model, timesteps, batch_size) - squared
    of_image = torch.arange(len(squared)) % len(held_out.latents)
    dimension, log_snr = held_out.latents[0].numel(), model.schedule.log_snr[timesteps]
    density, half_width = (dimension / 2 * each for each in (rise.mean(0), clustered_half_width(rise, of_image)))
    nats = rise @ torch.from_numpy(nats_per_error(log_snr.numpy(), dimension))
    total, total_width = float(nats.mean()), float(clustered_half_width(nats, of_image))
    found = Findings(
        {TOTAL: total, f"{TOTAL}_half_width": total_width},
        {CURVE: Curve.around(timesteps, log_snr, density, half_width)},
    )
    if total > total_width:
        most = model.conditioning.most_nats
        low, high = shortest_interval(log_snr.numpy(), density.numpy(), most)
        found.scalars |= {"guidance_interval/low": low, "guidance_interval/high": high}
        told = f"{total:.2f} ± {total_width:.2f} nats that the condition tells."
        if total > most:
            told = (
                f"{most:.2f} nats that the condition can tell; measured were {total:.2f} ± {total_width:.2f}, since "
                "without a condition the network denoises worse than it could."
            )
        advice = f"Guidance is of use between two log-SNRs, --guidance-interval {low:.1f} {high:.1f}, which hold "
        found.provenance["notes"] = {CURVE: f"{advice}{SHARE:.0%} of the {told}"}
    return found


def shortest_interval(log_snr: np.ndarray, density: np.ndarray, most: float = np.inf) -> tuple[float, float]:
    """Return the ends of the shortest interval that holds 90 % of a density, which is linear between its points and
    taken for 0 where it is negative.

    Args:
        log_snr: where it is known, (L,), rising.
        density: somewhere above 0, (L,).
        most: the largest integral that it can have; from where that is reached, the density is taken for 0.
    """
    fine = np.linspace(log_snr[0], log_snr[-1], 2001)
    held = np.cumsum(np.interp(fine, log_snr, np.maximum(density, 0.0))) * (fine[1] - fine[0])
    held = np.minimum(held, most) / min(held[-1], most)
    starts = fine[held <= 1 - SHARE + 1e-12]
    ends = np.interp(np.interp(starts, fine, held) + SHARE, held, fine)
    shortest = int(np.argmin(ends - starts))
    return float(starts[shortest]), float(ends[shortest])
