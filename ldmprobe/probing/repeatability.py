r"""Repeatability: whether a network answers alike when it is asked the same thing twice, and what of its held-out error
is chance where it does not.

.. math:: \text{chance}(\lambda) = \frac{\tfrac12\, \mathbb E\, \| \epsilon_\theta - \epsilon_\theta' \|^2}
          {D\, \text{MSE}_\epsilon(\lambda)}

with two answers to the same latents. Of answers that are independent given their latents the numerator is their
variance, all of which is in the error, and which an average of many answers would be without. It is 0 in evaluation
unless something is left on that belongs to training: dropout, dropped layers, added noise, a posterior that is drawn
from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldmprobe.io.metric import Metric
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.draws import Draws, Level, answered

CURVE = "prediction_chance"
NUM_DRAWS = 8  # that are asked for twice
METRICS = (
    Metric(
        CURVE, "Share of the error that is chance",
        "How far two answers to the same latents lie apart. 0 of a network in evaluation; above it, something random "
        "is left on: dropout, added noise, a posterior that is drawn from.",
        "share of the error", good="lower", ideal=0.0, shown="record",
    ),
)  # fmt: skip


def variance_of_answers(model: DiffusionModel, draws: Draws, timesteps: Tensor) -> Tensor:
    """Return half the mean squared difference per dimension of two ε-predictions of the same latents at each level,
    (L,), float64 on the CPU.

    Args:
        draws: few: each is denoised twice.
        timesteps: the levels, (L,).
    """
    found = torch.zeros(len(draws.z0), len(timesteps), dtype=torch.float64, device=model.device)
    for k, timestep in enumerate(timesteps.tolist()):
        asked = Level.of(model.schedule, timestep), draws.z0, draws.noise, draws.condition
        one, other = (answered(model, *asked).epsilon for _ in range(2))
        found[:, k] = (one - other).double().pow(2).flatten(1).mean(1) / 2
    return draws.gathered(found).mean(0)
