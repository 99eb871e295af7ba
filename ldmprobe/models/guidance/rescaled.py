"""RescaledGuidance: classifier-free guidance that does not over-expose."""

from __future__ import annotations

from torch import Tensor

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.guidance.base import Answer, Asked, Guided
from ldmprobe.models.guidance.classifier_free import ClassifierFreeGuidance
from ldmprobe.types import PlainValues


class RescaledGuidance(ClassifierFreeGuidance):
    r"""Classifier-free guidance whose answers have the standard deviation of the conditional ones, mixed with the plain
    ones (Lin et al., 2023, arXiv:2305.08891, eqs. 14 to 16):
    :math:`\phi\,x_\text{cfg}\,\text{std}(x_\text{pos})/\text{std}(x_\text{cfg}) + (1-\phi)\,x_\text{cfg}`, the standard
    deviations being over the entries of one sample. It is not affine: there is no ideal.

    Args:
        scale: of classifier-free guidance; 1 is none.
        mix: φ, from 0, which is plain guidance, to 1.

    Raises:
        ConfigurationError: the scale is not finite, or the mix outside [0, 1].
    """

    def __init__(self, scale: float, mix: float = 0.7) -> None:
        super().__init__(scale)
        if not 0 <= mix <= 1:
            raise ConfigurationError(f"RescaledGuidance got mix {mix}; expected a number from 0 to 1.")
        self.mix = float(mix)

    def guide(self, answer: Answer, model: Guided) -> Answer:
        conditional: list[Tensor] = []

        def kept(z_t: Tensor, asked: Asked, condition: Condition) -> Tensor:
            conditional.append(answer(z_t, asked, condition))
            return conditional[-1]

        plain = super().guide(kept, model)

        def guided(z_t: Tensor, asked: Asked, condition: Condition) -> Tensor:
            conditional.clear()
            x = plain(z_t, asked, condition)
            if len(conditional) < 2:  # there is no guidance
                return x
            ratio = _std(conditional[0]) / _std(x)
            return x * (self.mix * ratio + 1 - self.mix)

        return guided

    @property
    def provenance(self) -> PlainValues:
        return {**super().provenance, "guidance_rescale": self.mix}


def _std(x: Tensor) -> Tensor:
    """Return the standard deviation over each sample's entries, (N, 1, …)."""
    return x.flatten(1).std(1).view(-1, *[1] * (x.ndim - 1))
