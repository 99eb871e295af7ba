"""Samplers: each a short program of affine operations on named latents."""

from ldmprobe.diffusion.samplers.base import Combine, Denoise, Sampler, SamplerStep, denoise_at
from ldmprobe.diffusion.samplers.ddim import DDIM
from ldmprobe.diffusion.samplers.euler import Euler

__all__ = ["DDIM", "Combine", "Denoise", "Euler", "Sampler", "SamplerStep", "denoise_at"]
