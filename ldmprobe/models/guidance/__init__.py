"""Guidances: how answers of a network become guided ones, one kind a file."""

from ldmprobe.models.guidance.base import Answer, Asked, Guidance, Guided
from ldmprobe.models.guidance.classifier import ClassifierGuidance
from ldmprobe.models.guidance.classifier_free import ClassifierFreeGuidance, as_guidance
from ldmprobe.models.guidance.instruction import InstructionGuidance
from ldmprobe.models.guidance.interval import IntervalGuidance
from ldmprobe.models.guidance.measurement import MeasurementGuidance
from ldmprobe.models.guidance.measurement_methods import DPS, MMPS, MeasurementMethod, Replacement
from ldmprobe.models.guidance.operators import BlockMeans, KnownPixels, Operator
from ldmprobe.models.guidance.rescaled import RescaledGuidance

__all__ = [
    "DPS",
    "MMPS",
    "Answer",
    "Asked",
    "BlockMeans",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Guidance",
    "Guided",
    "InstructionGuidance",
    "IntervalGuidance",
    "KnownPixels",
    "MeasurementGuidance",
    "MeasurementMethod",
    "Operator",
    "Replacement",
    "RescaledGuidance",
    "as_guidance",
]
