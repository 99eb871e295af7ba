"""Classifier-free guidance of a probe's samples: whether there is anything to guide by."""

from __future__ import annotations

import math

import torch

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.probe import evaluating


def check_guidance(model: DiffusionModel, guidance_scale: float) -> None:
    """Before anything is sampled: null + scale · (conditional − null) is the conditional prediction, whatever the scale, where the condition
    is the null condition.

    Raises:
        ConfigurationError: the scale is not finite; or it is not 1, and the model has no condition, or none but empty prompts.
    """
    if not math.isfinite(guidance_scale):
        raise ConfigurationError(f"`guidance_scale` is {guidance_scale}; expected a finite number, 1 for no guidance.")
    if guidance_scale == 1:
        return
    with evaluating(model.modules):
        if not model.conditioning.for_samples(torch.zeros(1, dtype=torch.long, device=model.device)):
            raise ConfigurationError(
                f"`guidance_scale` is {guidance_scale:g}, but the model has no condition to guide by; set it to 1, no guidance."
            )
        prompts = model.conditioning.description.get("prompts", [])
        if prompts and all(_is_null(model, i) for i in range(len(prompts))):
            raise ConfigurationError(
                f"`guidance_scale` is {guidance_scale:g}, but there is no prompt to guide by: to this model {prompts[0]!r} is the null condition "
                "itself. Give --prompt, in a configuration the model's `prompts`; or set it to 1, no guidance."
            )


def _is_null(model: DiffusionModel, sample_id: int) -> bool:
    condition = model.conditioning.for_samples(torch.tensor([sample_id], device=model.device))
    null = model.conditioning.null(1, model.device)
    return all(torch.equal(value.to(null[name]), null[name]) for name, value in condition.items())
