"""Guidance: how a network's answers to a condition and to none become one answer. It wraps a denoiser, and knows no
sampler.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.conditioning import Conditioning
from ldmprobe.models.denoiser import Condition
from ldmprobe.types import PlainValues

Answer = Callable[[Tensor, Tensor, Condition], Tensor]
"""(z_t (N, …), timesteps (N,), condition of each sample) → the network's answer (N, …)."""


class Guidance(ABC):
    """Turns the answers of a network into guided ones."""

    def at(self, log_snr: float) -> Guidance:
        """Return the guidance at noise levels of this log-SNR: by default, the same at all."""
        return self

    @abstractmethod
    def guide(self, answer: Answer, conditioning: Conditioning, device: torch.device) -> Answer:
        """Return ``answer`` guided. What does not depend on the latents is made here, once for all steps."""

    @property
    @abstractmethod
    def provenance(self) -> PlainValues:
        """Return what a record says of it, as plain values; two guidances that say the same sample alike."""

    @property
    @abstractmethod
    def shifts(self) -> bool:
        """Return whether it moves the samples' distribution, so that curves are no longer comparable with the ideal."""

    @abstractmethod
    def check(self, conditioning: Conditioning, device: torch.device) -> None:
        """Raise ConfigurationError, before anything is sampled, where there is nothing to guide by."""


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

    def guide(self, answer: Answer, conditioning: Conditioning, device: torch.device) -> Answer:
        if not self.shifts:
            return answer
        null = conditioning.null(1, device)

        def guided(z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            if not condition:
                return answer(z_t, t, condition)
            conditional = answer(z_t, t, condition)
            none = {name: value.expand_as(condition[name]) for name, value in null.items()}
            unconditional = answer(z_t, t, none)
            return unconditional + self.scale * (conditional - unconditional)

        return guided

    @property
    def provenance(self) -> PlainValues:
        return {"guidance_scale": self.scale}

    @property
    def shifts(self) -> bool:
        return self.scale != 1.0

    def check(self, conditioning: Conditioning, device: torch.device) -> None:
        if not self.shifts:
            return
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
    null = conditioning.null(1, device)
    return all(torch.equal(value.to(null[name]), null[name]) for name, value in condition.items())
