"""Clipping: what a scheduler that clips x̂_0 cuts off latents that reach further.

diffusers' DDPMScheduler and DDIMScheduler clip to ±1 by default. That is right for pixels in [−1, 1], and wrong for
latents of unit variance.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.types import PlainValues

NEGLIGIBLE = 1e-3  # share of the entries beyond the range, and rounding at its border


def count_clipped(x0: Tensor, clip_range: float) -> Tensor:
    """Return how many entries of x̂_0, as a step has clipped it, are at the border, and how many there are: (2,),
    float64.
    """
    return torch.stack([(x0.abs() >= clip_range).sum(), torch.tensor(x0.numel(), device=x0.device)]).double()


def clipping(
    model: DiffusionModel, clip_range: float | None, clipped: Tensor, magnitudes: Tensor | None = None
) -> PlainValues:
    """Describe for a record's provenance what clipping does to this model's latents; warn where it cuts off what real
    ones have.

    Args:
        clip_range: the sampling grid's; None for a scheduler that does not clip, of which there is nothing to say.
        clipped: (2,), the sum of ``count_clipped`` over the last step of all samples.
        magnitudes: evenly spaced quantiles of real latents' magnitudes, (Q,), where they are known. Else the model's
            own samples stand for them, unless it is one of pixels, whose x̂_0 lies on the border itself.
    """
    if clip_range is None:
        return {}
    scheduler = model.schedule.name
    found: PlainValues = {"clip_range": clip_range, "clipped_samples": float(clipped[0] / clipped[1].clamp(min=1))}
    share, of = 0.0 if model.codec.meta_module is None else found["clipped_samples"], "the model's predictions of x_0"
    if magnitudes is not None and len(magnitudes):
        share = found["clipped_real"] = float((magnitudes > clip_range * (1 + NEGLIGIBLE)).double().mean())
        of = f"real latents (up to {float(magnitudes[-1]):.2g})"
    if share > NEGLIGIBLE:
        found["clipping"] = (
            f"the {scheduler} clips to ±{clip_range:g}, and {share:.1%} of the entries of {of} lie beyond"
        )
        warnings.warn(
            f"Samples are cut off: {found['clipping']}. Everything that is measured of them is of latents that the "
            "data do not have. Write `clip_sample: false` in the scheduler's settings, such as "
            f"`{scheduler}(clip_sample=False)`.",
            stacklevel=3,
        )
    return found
