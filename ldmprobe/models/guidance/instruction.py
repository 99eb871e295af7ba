"""InstructionGuidance: two scales, one for a picture beside z_t and one for everything else."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.denoiser import CONCAT, Condition
from ldmprobe.models.guidance.base import Answer, Asked, Guidance, Guided
from ldmprobe.models.guidance.classifier_free import check_knows_null
from ldmprobe.types import PlainValues


class InstructionGuidance(Guidance):
    r"""InstructPix2Pix's guidance by an image I and an instruction T (Brooks et al., 2023, arXiv:2211.09800, eq. 3):
    :math:`\epsilon_\varnothing + s_I\,(\epsilon_I - \epsilon_\varnothing) + s_T\,(\epsilon_{IT} - \epsilon_I)`. The
    model has to be trained with either dropped, and with both.

    Args:
        image_scale: s_I, how close to stay to the picture beside z_t.
        scale: s_T, how far to follow what else is told. Both 1 is no guidance.

    Raises:
        ConfigurationError: a scale is not finite, or, before sampling, the model is not told both.
    """

    def __init__(self, image_scale: float = 1.5, scale: float = 7.5) -> None:
        if not math.isfinite(image_scale) or not math.isfinite(scale):
            raise ConfigurationError(
                f"InstructionGuidance got image_scale {image_scale}, scale {scale}; expected finite numbers, 1 for no "
                "guidance."
            )
        self.image_scale, self.scale = float(image_scale), float(scale)

    def guide(self, answer: Answer, model: Guided) -> Answer:
        if not self.shifts:
            return answer
        without = model.conditioning.without(model.device)

        def guided(z_t: Tensor, asked: Asked, condition: Condition) -> Tensor:
            none = without(condition)
            nothing = answer(z_t, asked, none)
            image = answer(z_t, asked, {**none, CONCAT: condition[CONCAT]})
            both = answer(z_t, asked, condition)
            return nothing + self.image_scale * (image - nothing) + self.scale * (both - image)

        return guided

    @property
    def provenance(self) -> PlainValues:
        return {"guidance_scale": self.scale, "image_guidance_scale": self.image_scale}

    @property
    def shifts(self) -> bool:
        return (self.image_scale, self.scale) != (1.0, 1.0)

    def check(self, model: Guided) -> None:
        conditioning = model.conditioning
        told = conditioning.for_samples(torch.zeros(1, dtype=torch.long, device=model.device))
        if CONCAT not in told or len(told) < 2:
            raise ConfigurationError(
                "InstructionGuidance guides by a picture beside z_t and by something else, and the model's "
                f"conditioning is {conditioning.label}; use ClassifierFreeGuidance."
            )
        if self.shifts:
            check_knows_null(conditioning)
            none, null = conditioning.without(model.device)(told), conditioning.null(1, model.device)
            if kept := [name for name in null if not torch.equal(none[name], null[name].to(none[name]))]:
                raise ConfigurationError(
                    f"InstructionGuidance asks the model without its {', '.join(kept)}, too, which it was never "
                    f"trained without ({conditioning.label}); train with a `dropout` of each part, or use "
                    "ClassifierFreeGuidance."
                )
