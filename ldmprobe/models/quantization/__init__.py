"""Quantizations: how the latents of a VQModel are snapped to codes while it is trained."""

from ldmprobe.models.quantization.base import (
    Gather,
    Quantization,
    Quantized,
    code_statistics,
    has_own_codes,
    nearest_codes,
)
from ldmprobe.models.quantization.binary import BinarySphericalQuantization, LookupFreeQuantization
from ldmprobe.models.quantization.codebook import MovingAverageQuantization, VectorQuantization
from ldmprobe.models.quantization.scalar import FiniteScalarQuantization

__all__ = [
    "BinarySphericalQuantization",
    "FiniteScalarQuantization",
    "Gather",
    "LookupFreeQuantization",
    "MovingAverageQuantization",
    "Quantization",
    "Quantized",
    "VectorQuantization",
    "code_statistics",
    "has_own_codes",
    "nearest_codes",
]
