"""Samplers: each a short program of affine operations on named latents."""

from ldmprobe.diffusion.samplers.base import (
    Combine,
    Denoise,
    Move,
    Sampler,
    SamplerStep,
    denoise_at,
    denoise_between,
    moves,
    one_step_program,
)
from ldmprobe.diffusion.samplers.ddim import DDIM, DDPM
from ldmprobe.diffusion.samplers.dpm_solver import DPMSolver
from ldmprobe.diffusion.samplers.euler import Euler, EulerAncestral
from ldmprobe.diffusion.samplers.heun import Heun
from ldmprobe.diffusion.samplers.langevin import AnnealedLangevin, Langevin, PredictorCorrector
from ldmprobe.diffusion.samplers.resampling import Resampling
from ldmprobe.diffusion.samplers.scaled_epsilon import ScaledEpsilon
from ldmprobe.diffusion.samplers.sde import EulerMaruyama
from ldmprobe.diffusion.samplers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "AnnealedLangevin",
    "Combine",
    "DPMSolver",
    "Denoise",
    "Euler",
    "EulerAncestral",
    "EulerMaruyama",
    "Heun",
    "Langevin",
    "Move",
    "PredictorCorrector",
    "Resampling",
    "Sampler",
    "SamplerStep",
    "ScaledEpsilon",
    "UniPC",
    "denoise_at",
    "denoise_between",
    "moves",
    "one_step_program",
]
