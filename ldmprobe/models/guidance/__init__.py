"""Guidances: how answers of a network become guided ones, one kind a file."""

from ldmprobe.models.guidance.base import Answer, Asked, Guidance, Guided
from ldmprobe.models.guidance.classifier_free import ClassifierFreeGuidance, as_guidance
from ldmprobe.models.guidance.instruction import InstructionGuidance
from ldmprobe.models.guidance.interval import IntervalGuidance
from ldmprobe.models.guidance.rescaled import RescaledGuidance

__all__ = [
    "Answer",
    "Asked",
    "ClassifierFreeGuidance",
    "Guidance",
    "Guided",
    "InstructionGuidance",
    "IntervalGuidance",
    "RescaledGuidance",
    "as_guidance",
]
