"""ClassifierFreeGuidance: a network's answers to a condition and to none become one answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.conditioning import Conditioning
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.guidance.base import Answer, Asked, Guidance, Guided
from ldmprobe.types import PlainValues


class ClassifierFreeGuidance(Guidance):
    """null + scale · (conditional − null) (Ho & Salimans, 2022, arXiv:2207.12598, eq. 6, with scale = 1 + w).

    Args:
        scale: 1 is none: then the null condition is not asked about.

    Raises:
        ConfigurationError: the scale is not finite.
    """

    def __init__(self, scale: float = 1.0) -> None:
        if not math.isfinite(scale):
            raise ConfigurationError(f"The guidance scale is {scale}; expected a finite number, 1 for no guidance.")
        self.scale = float(scale)

    def guide(self, answer: Answer, model: Guided) -> Answer:
        if not self.shifts:
            return answer
        without = model.conditioning.without(model.device)

        def guided(z_t: Tensor, asked: Asked, condition: Condition) -> Tensor:
            if not condition:
                return answer(z_t, asked, condition)
            conditional = answer(z_t, asked, condition)
            unconditional = answer(z_t, asked, without(condition))
            return unconditional + self.scale * (conditional - unconditional)

        return guided

    @property
    def provenance(self) -> PlainValues:
        return {"guidance_scale": self.scale}

    @property
    def shifts(self) -> bool:
        return self.scale != 1.0

    def check(self, model: Guided) -> None:
        if not self.shifts:
            return
        conditioning, device = model.conditioning, model.device
        if not conditioning.for_samples(torch.zeros(1, dtype=torch.long, device=device)):
            raise ConfigurationError(
                f"The guidance scale is {self.scale:g}, but the model has no condition to guide by; set it to 1, no "
                "guidance."
            )
        check_knows_null(conditioning)
        prompts = conditioning.description.get("prompts", [])
        if prompts and all(_is_null(conditioning, i, device) for i in range(len(prompts))):
            raise ConfigurationError(
                f"The guidance scale is {self.scale:g}, but there is no prompt to guide by: to this model "
                f"{prompts[0]!r} is the null condition itself. Give --prompt, in a configuration the model's "
                "`prompts`; or set it to 1, no guidance."
            )


def as_guidance(guidance: Guidance | float) -> Guidance:
    """Return a number as the scale of classifier-free guidance, and a Guidance as it is."""
    return guidance if isinstance(guidance, Guidance) else ClassifierFreeGuidance(guidance)


def check_knows_null(conditioning: Conditioning) -> None:
    """Raise ConfigurationError if the model was never trained without its condition, which guidance asks it about."""
    if not conditioning.knows_null:
        raise ConfigurationError(
            f"The model was trained with dropout 0 of its condition ({conditioning.label}), so that it does not know "
            "what guidance asks it: the answer without a condition. Sample without guidance (scale 1), or train with a "
            "`dropout`, such as 0.1."
        )


def _is_null(conditioning: Conditioning, sample_id: int, device: torch.device) -> bool:
    condition = conditioning.for_samples(torch.tensor([sample_id], device=device))
    null = conditioning.without(device)(condition)
    return all(torch.equal(value.to(null[name]), null[name]) for name, value in condition.items())
