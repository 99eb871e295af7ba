"""Conditionings: what a network is told besides z_t and t, one kind a file."""

from ldmprobe.models.conditioning.base import Conditioning, conditioning_of, describe
from ldmprobe.models.conditioning.changed_rows import with_assumed_columns
from ldmprobe.models.conditioning.conditions import Conditions
from ldmprobe.models.conditioning.held_out_rows import HeldOutRows
from ldmprobe.models.conditioning.label import ClassConditioning
from ldmprobe.models.conditioning.layout import Layout
from ldmprobe.models.conditioning.low_resolution import SMALL, LowResolution
from ldmprobe.models.conditioning.masked import Masked
from ldmprobe.models.conditioning.of_rows import OfRows
from ldmprobe.models.conditioning.protocols import CardPart, ConditioningData, FrozenEncoder, Shown
from ldmprobe.models.conditioning.semantic_map import SemanticMap
from ldmprobe.models.conditioning.sketch import Sketch
from ldmprobe.models.conditioning.small_clip import SmallCLIP
from ldmprobe.models.conditioning.spatial import SpatialConditioning
from ldmprobe.models.conditioning.style_source import StyleSource
from ldmprobe.models.conditioning.text import TextConditioning
from ldmprobe.models.conditioning.text_encoder import TextEncoder
from ldmprobe.models.conditioning.unconditional import Unconditional

__all__ = [
    "SMALL",
    "CardPart",
    "ClassConditioning",
    "Conditioning",
    "ConditioningData",
    "Conditions",
    "FrozenEncoder",
    "HeldOutRows",
    "Layout",
    "LowResolution",
    "Masked",
    "OfRows",
    "SemanticMap",
    "Shown",
    "Sketch",
    "SmallCLIP",
    "SpatialConditioning",
    "StyleSource",
    "TextConditioning",
    "TextEncoder",
    "Unconditional",
    "conditioning_of",
    "describe",
    "with_assumed_columns",
]
