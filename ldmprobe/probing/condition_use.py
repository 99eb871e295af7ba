r"""Whether a model uses its condition, by noise level: how much its held-out error rises where samples swap conditions.

.. math:: \text{use}(\lambda) = \frac{\text{MSE}_\epsilon(\lambda \mid \text{another image's condition})}
          {\text{MSE}_\epsilon(\lambda \mid \text{its own})} - 1, \qquad z = \bar d / \widehat{\text{se}}(\bar d)

with d the difference of the two errors of one draw, of the same image and noise; the other image is one that tells
something else. A model that ignores the condition has 0 everywhere; of one that uses it some level shows it beyond
doubt, z > 5.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ldmprobe.analysis.intervals import clustered_half_width, student
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses.base import Findings
from ldmprobe.probing.draws import Draws
from ldmprobe.probing.held_out import HeldOut

NOTE = "condition_use/*"
BEYOND_DOUBT = 5.0  # standard errors
_IGNORED = 0.01  # of the error: a condition that surely matters by less at every level
_FEWEST = 8  # images that some other image tells something else than
METRICS = (
    Metric(
        NOTE, "Is the condition used?",
        "How much the held-out error rises where an image is told another image's condition that differs, as a share "
        "of the error. 0 is a condition that is ignored. Where there is little noise the image itself says more than "
        "any condition.",
        "rise of the error with a swapped condition", good="higher", shown="headline",
    ),
    Metric(
        "condition_use_z/*", "Use of the condition in standard errors",
        "At the level where it shows best; below 5 there is doubt whether the condition is used at all.",
        "standard errors", good="higher",
    ),
)  # fmt: skip


def condition_use(
    model: DiffusionModel, held_out: HeldOut, draws: Draws, squared: Tensor, timesteps: Tensor, batch_size: int
) -> Findings:
    """Denoise some draws of the denoising probe with swapped conditions, and compare. Of a condition that is the same
    for all images, and of fewer than 8 images, nothing is found; of those that surely matter at no level there is a
    note.

    Args:
        draws: the probe's first N, of the held-out latents.
        squared: their squared ε-errors with their own conditions, (N, L).
        timesteps: the levels, (L,).
    """
    num_images, used, ignored = len(held_out.latents), Findings(), []
    every, first = held_out.condition, {name: value[:1].expand_as(value) for name, value in held_out.condition.items()}
    for name, told in model.conditioning.swapped(first, every).items():  # all but this condition is the first image's
        other, differs = _others(told, min(num_images, len(squared)))
        if int(differs.sum()) < _FEWEST:
            continue
        own, others = ({key: value[i] for key, value in every.items()} for i in (draws.image, other[draws.image]))
        condition = model.conditioning.swapped(own, others)[name]
        errors = replace(draws, condition=condition).squared_errors(model, timesteps, batch_size)
        image = torch.arange(len(squared)) % num_images
        kept = differs[image]
        of_image = image[kept].unique(return_inverse=True)[1]
        rise, mse = (errors - squared)[kept], squared[kept].mean(0)
        half_width = clustered_half_width(rise, of_image)
        log_snr = model.schedule.log_snr[timesteps]
        used.curves[f"condition_use/{name}"] = Curve.around(timesteps, log_snr, rise.mean(0) / mse, half_width / mse)
        z = (rise.mean(0) / half_width).nan_to_num(0.0) * student(int(of_image.max()) + 1)
        used.scalars[f"condition_use_z/{name}"] = float(z.max())
        if float(z.max()) < BEYOND_DOUBT and bool((rise.mean(0) + half_width < _IGNORED * mse).all()):
            ignored.append(
                f"The condition ({name}) is ignored: held-out images are denoised as well with that of another image "
                f"at every noise level (z = {float(z.max()):.1f} at most)."
            )
    if ignored:
        used.provenance["notes"] = {NOTE: " ".join(ignored)}
    return used


def _others(told: Condition, number: int) -> tuple[Tensor, Tensor]:
    """Return for each of the first ``number`` images the next one, from half of all images on, that is told something
    else, and whether there is one.
    """
    each = [fingerprint(*row) for row in zip(*told.values(), strict=True)]
    what = torch.from_numpy(np.unique(each, return_inverse=True)[1])
    image = torch.arange(number)[:, None]
    candidates = (image + len(what) // 2 + torch.arange(len(what))) % len(what)
    differs = what[candidates] != what[image]
    return candidates.gather(1, differs.int().argmax(1, keepdim=True))[:, 0], differs.any(1)
