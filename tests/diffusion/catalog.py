"""The catalog of weightings, samplers and schedules, each made anew: what the tests of this folder run over."""

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import ldmprobe
import ldmprobe.diffusion
from ldmprobe.diffusion.adaptive_timesteps import AdaptiveLoss, AdaptiveTimesteps, LossSecondMoment, VarianceAware
from ldmprobe.diffusion.balanced_timesteps import BalancedTimesteps
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.schedule import NoiseSchedule
from tests.helpers import sd_scheduler

ZERO_TERMINAL = {
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
}
"""Settings by which Stable Diffusion's schedule starts without signal and ends at the data."""


def _learned() -> ldmprobe.LearnedUncertainty:
    """With an uncertainty that is not 0."""
    torch.manual_seed(0)
    weighting = ldmprobe.LearnedUncertainty(num_features=16).double()
    torch.nn.init.normal_(weighting.linear.weight)
    return weighting


WEIGHTINGS: dict[str, Callable[[], ldmprobe.LossWeighting]] = {
    "plain": ldmprobe.UniformWeighting,
    "simple": ldmprobe.SNRPower,
    "even x0": lambda: ldmprobe.SNRPower(-1),
    "inverse SNR": lambda: ldmprobe.SNRPower(-2),
    "min-SNR": ldmprobe.MinSNR,
    "truncated SNR": ldmprobe.MaxSNR,
    "max-SNR-5": lambda: ldmprobe.MaxSNR(5),
    "soft-min-SNR": ldmprobe.SoftMinSNR,
    "SNR+1": ldmprobe.SNRPlusOne,
    "P2": ldmprobe.P2,
    "P2, gamma .5": lambda: ldmprobe.P2(gamma=0.5),
    "debiased": ldmprobe.Debiased,
    "EDM": ldmprobe.EDM,
    "sigmoid": ldmprobe.Sigmoid,
    "learned": _learned,
}

STATIC_SAMPLERS: dict[str, Callable[[], ldmprobe.TimestepSampler]] = {
    "uniform": ldmprobe.UniformTimesteps,
    "beta": lambda: ldmprobe.BetaTimesteps(0.8, 1.5),
    "SpeeD": ldmprobe.SpeeD,
    "starved": lambda: ldmprobe.StarvedBand(300, 600),
    "uniform in log-SNR": ldmprobe.UniformLogSNR,
    "EDM": ldmprobe.LogNormalSigma,
    "EDM2": lambda: ldmprobe.LogNormalSigma(-0.4, 1.0),
    "logit-normal": ldmprobe.LogitNormal,
    "logit-normal, shift 3": lambda: ldmprobe.LogitNormal(shift=3),
    "Laplace": ldmprobe.Laplace,
    "mode": ldmprobe.Mode,
    "CosMap": ldmprobe.CosMap,
    "stratified": lambda: ldmprobe.Stratified(ldmprobe.LogitNormal()),
}


@cache
def _taught(kind: type[AdaptiveTimesteps]) -> AdaptiveTimesteps:
    """After ten losses of every timestep of Stable Diffusion's schedule: larger towards low noise, none alike."""
    sampler = kind()
    log_snr = schedules()["stable diffusion, ε"].log_snr.repeat_interleave(10)
    t = torch.arange(1000).repeat_interleave(10)
    noise = torch.rand(len(t), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampler.observe(t, log_snr, (0.3 * log_snr).exp() * (0.5 + noise))
    return sampler


def _new_and_taught(kind: type[AdaptiveTimesteps]) -> AdaptiveTimesteps:
    return copy.deepcopy(_taught(kind))


def _steered(base: ldmprobe.TimestepSampler | None = None) -> BalancedTimesteps:
    """Towards the middle levels, which count more, too."""
    sampler = BalancedTimesteps(base)
    level = torch.tensor([-4.0, 0.0, 5.0])
    sampler.steer(level, torch.tensor([0.5, 2.0, 1.0]), torch.tensor([1.0, 1.5, 0.5]))
    return sampler


ADAPTIVE_SAMPLERS: dict[str, Callable[[], ldmprobe.TimestepSampler]] = {
    "second moment, new": LossSecondMoment,
    "second moment": lambda: _new_and_taught(LossSecondMoment),
    "adaptive, new": AdaptiveLoss,
    "adaptive": lambda: _new_and_taught(AdaptiveLoss),
    "adaptive, stratified": lambda: ldmprobe.Stratified(_new_and_taught(AdaptiveLoss)),
}

VARIANCE_AWARE: dict[str, Callable[[], ldmprobe.TimestepSampler]] = {
    "variance-aware, new": VarianceAware,
    "variance-aware": lambda: _new_and_taught(VarianceAware),
}

STEERED_SAMPLERS: dict[str, Callable[[], ldmprobe.TimestepSampler]] = {
    "balanced, new": BalancedTimesteps,
    "balanced": _steered,
    "balanced, adaptive base": lambda: _steered(_new_and_taught(LossSecondMoment)),
}

SAMPLERS = {**STATIC_SAMPLERS, **ADAPTIVE_SAMPLERS, **VARIANCE_AWARE, **STEERED_SAMPLERS}


@cache
def schedules() -> dict[str, NoiseSchedule]:
    """Of 1,000 timesteps: every prediction type, with zero terminal SNR where it may be."""
    zero_terminal = {"rescale_betas_zero_snr": True}
    return {
        "stable diffusion, ε": as_schedule(sd_scheduler()),
        "stable diffusion, x0": as_schedule(sd_scheduler(prediction_type="sample")),
        "stable diffusion, v": as_schedule(sd_scheduler(prediction_type="v_prediction")),
        "cosine, ε": as_schedule(sd_scheduler(beta_schedule="squaredcos_cap_v2")),
        "zero terminal, x0": as_schedule(sd_scheduler(prediction_type="sample", **zero_terminal)),
        "zero terminal, v": as_schedule(sd_scheduler(prediction_type="v_prediction", **zero_terminal)),
        "flow": as_schedule(FlowMatchEulerDiscreteScheduler()),
        "flow, shift 3": as_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0)),
    }


def concrete_classes(base: type) -> set[type]:
    """Every class of ldmprobe.diffusion below ``base`` that can be made."""
    for module in pkgutil.iter_modules(ldmprobe.diffusion.__path__):
        importlib.import_module(f"ldmprobe.diffusion.{module.name}")
    found, open_classes = set(), [base]
    while open_classes:
        of = open_classes.pop()
        open_classes += of.__subclasses__()
        if not inspect.isabstract(of) and of.__module__.startswith("ldmprobe.diffusion"):
            found.add(of)
    return found
