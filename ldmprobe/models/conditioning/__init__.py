"""Conditionings: what a network is told besides z_t and t, one kind a file."""

from ldmprobe.models.conditioning.base import (
    CardPart,
    Conditioning,
    ConditioningData,
    FrozenEncoder,
    conditioning_of,
    describe,
)
from ldmprobe.models.conditioning.held_out_rows import HeldOutRows
from ldmprobe.models.conditioning.label import ClassConditioning
from ldmprobe.models.conditioning.small_clip import SmallCLIP
from ldmprobe.models.conditioning.text import TextConditioning
from ldmprobe.models.conditioning.text_encoder import TextEncoder
from ldmprobe.models.conditioning.unconditional import Unconditional

__all__ = [
    "CardPart",
    "ClassConditioning",
    "Conditioning",
    "ConditioningData",
    "FrozenEncoder",
    "HeldOutRows",
    "SmallCLIP",
    "TextConditioning",
    "TextEncoder",
    "Unconditional",
    "conditioning_of",
    "describe",
]
