r"""Whether a model uses its condition, by noise level: how much its held-out error rises where samples swap conditions.

.. math:: \text{use}(\lambda) = \frac{\text{MSE}_\epsilon(\lambda \mid \text{another image's condition})}
          {\text{MSE}_\epsilon(\lambda \mid \text{its own})} - 1, \qquad z = \bar d / \widehat{\text{se}}(\bar d)

with d the difference of the two errors of one draw, of the same image and noise. A model that ignores the condition has
0 everywhere; of one that uses it some level shows it beyond doubt, z > 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ldmprobe.analysis.intervals import clustered_half_width, student
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.draws import Draws
from ldmprobe.probing.held_out import HeldOut

BEYOND_DOUBT = 5.0  # standard errors
METRICS = (
    Metric(
        "condition_use/*", "Is the condition used?",
        "How much the held-out error rises where an image is told another image's condition, as a share of the error. "
        "0 is a condition that is ignored. Where there is little noise the image itself says more than any condition.",
        "rise of the error with a swapped condition", good="higher", shown="headline",
    ),
    Metric(
        "condition_use_z/*", "Use of the condition in standard errors",
        "At the level where it shows best; below 5 there is doubt whether the condition is used at all.",
        "standard errors", good="higher",
    ),
)  # fmt: skip


@dataclass
class ConditionUse:
    """What was found, as parts of a record.

    Attributes:
        ignored: a sentence for each condition of which no level shows that it is used.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def condition_use(
    model: DiffusionModel,
    held_out: HeldOut,
    draws: Draws,
    squared: Tensor,
    timesteps: Tensor,
    batch_size: int,
) -> ConditionUse:
    """Denoise some draws of the denoising probe with swapped conditions, and compare.

    Args:
        draws: the probe's first N, of the held-out latents.
        squared: their squared ε-errors with their own conditions, (N, L).
        timesteps: the levels, (L,).
    """
    num_images, used = len(held_out.latents), ConditionUse()
    other = (draws.image + max(1, num_images // 2)) % num_images
    own, swapped = ({name: value[i] for name, value in held_out.condition.items()} for i in (draws.image, other))
    of_image = torch.arange(len(squared)) % num_images
    for name, condition in model.conditioning.swapped(own, swapped).items():
        errors = replace(draws, condition=condition).squared_errors(model, timesteps, batch_size)
        rise = errors - squared
        mse, half_width = squared.mean(0), clustered_half_width(rise, of_image)
        log_snr = model.schedule.log_snr[timesteps]
        used.curves[f"condition_use/{name}"] = Curve.around(timesteps, log_snr, rise.mean(0) / mse, half_width / mse)
        z = (rise.mean(0) / half_width).nan_to_num(0.0) * student(int(of_image.max()) + 1)
        used.scalars[f"condition_use_z/{name}"] = float(z.max())
        if float(z.max()) < BEYOND_DOUBT:
            used.ignored.append(
                f"The condition ({name}) is ignored: held-out images are denoised as well with that of another image "
                f"at every noise level (z = {float(z.max()):.1f} at most)."
            )
    return used
