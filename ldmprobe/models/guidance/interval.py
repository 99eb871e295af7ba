"""IntervalGuidance: guidance between two noise levels, and none elsewhere."""

from __future__ import annotations

import math

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.guidance.base import Answer, Guidance, GuidanceAround, Guided
from ldmprobe.models.guidance.classifier_free import ClassifierFreeGuidance, as_guidance
from ldmprobe.types import PlainValues


class IntervalGuidance(GuidanceAround):
    r"""Another guidance, at the noise levels of an interval alone (Kynkäänniemi et al., 2024, arXiv:2404.07724, eq. 6).
    Where there is most noise guidance takes variety away, and where there is least it does nothing but cost a pass.

    Args:
        guidance: a guidance, or the scale of a classifier-free one.
        min_log_snr, max_log_snr: the noisiest and the cleanest level that is guided; the paper's σ is
            :math:`e^{-\lambda/2}` here.

    Raises:
        ConfigurationError: not two finite numbers, the first below the second.
    """

    def __init__(self, guidance: Guidance | float, min_log_snr: float, max_log_snr: float) -> None:
        low, high = float(min_log_snr), float(max_log_snr)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigurationError(
                f"IntervalGuidance got min_log_snr {low:g}, max_log_snr {high:g}; expected two finite log-SNRs, the "
                "noisier (smaller) one first."
            )
        self.guidance, self.interval = as_guidance(guidance), (low, high)
        self._none = ClassifierFreeGuidance(1.0)

    def at(self, log_snr: float) -> Guidance:
        low, high = self.interval
        return self.guidance.at(log_snr) if low <= log_snr <= high else self._none

    def guide(self, answer: Answer, model: Guided) -> Answer:
        return self.guidance.guide(answer, model)

    @property
    def provenance(self) -> PlainValues:
        return {**self.guidance.provenance, "guidance_interval": list(self.interval)}

    @property
    def shifts(self) -> bool:
        return self.guidance.shifts
