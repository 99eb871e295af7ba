"""Noise schedules read from live diffusers schedulers: which are read, and how; which are not, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.diffusion.schedulers import (
    DiffusersSchedule,
    EDMSchedule,
    FlowMatchSchedule,
    ScoreSDESchedule,
    VariancePreservingSchedule,
)
from ldmprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

__all__ = ["READ", "REFUSED", "as_schedule"]

READ: dict[str, Callable[[SchedulerMixin], DiffusersSchedule]] = {
    "EDMDPMSolverMultistepScheduler": EDMSchedule,
    "EDMEulerScheduler": EDMSchedule,
    "FlowMatchEulerDiscreteScheduler": FlowMatchSchedule,
    "FlowMatchHeunDiscreteScheduler": FlowMatchSchedule,
    "LTXEulerAncestralRFScheduler": FlowMatchSchedule,
    "ScoreSdeVeScheduler": ScoreSDESchedule,
}
"""How each scheduler is read that has no table of ᾱ_t; those that have one are variance preserving."""

_CONSISTENCY = "it samples a consistency model, which answers with where the whole path ends and is no denoiser"
_FLOW_MAP = "its network was distilled to answer with a jump between two times, and is no denoiser of one noise level"
_TOKENS = "its data are discrete tokens, to which no Gaussian noise is added"
_STAGES = "its noise levels are those of several sizes of image in a row"

REFUSED = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": _CONSISTENCY,
    "CosineDPMSolverMultistepScheduler": "its network is told arctan σ and answers the negative of EDM's F",
    "DDPMWuerstchenScheduler": "it has no table of training timesteps: its network is told a share of the path",
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": _FLOW_MAP,
    "FlowMatchLCMScheduler": _CONSISTENCY,
    "HeliosDMDScheduler": _STAGES,
    "HeliosScheduler": _STAGES,
    "IPNDMScheduler": "its noise levels are no table of training timesteps, but depend on the number of steps",
    "KarrasVeScheduler": "its noise levels start at sigma_max² and its noise at sigma_max; use EDMProcess or VESDE",
    "LCMScheduler": _CONSISTENCY,
    "MiniMaxH3Scheduler": "its network is told 1 − σ, and it has no number of training timesteps",
    "PiflowScheduler": _FLOW_MAP,
    "RFD4ProteinaScheduler": "its data are proteins",
    "SCMScheduler": _CONSISTENCY,
    "TCDScheduler": _CONSISTENCY,
    "VQDiffusionScheduler": _TOKENS,
}
"""Why a scheduler of diffusers is not read."""


@runtime_checkable
class _HasTable(Protocol):
    alphas_cumprod: object


def as_schedule(source: SchedulerMixin | NoiseSchedule) -> NoiseSchedule:
    """Return the noise schedule of a diffusers scheduler; a NoiseSchedule is returned as it is.

    The scheduler's table of noise levels is read, and what its network is told and answers; its own solver, and the
    spacing of noise levels that belongs to it, are not.

    Args:
        source: a scheduler with a table ``alphas_cumprod`` (DDPM, DDIM, PNDM, Euler, Heun, DPM-Solver, UniPC, …:
            everything variance preserving), or one of EDM, of the variance-exploding SDE or of flow matching.

    Raises:
        ConfigurationError: it is of another kind (the message says why), clips by dynamic thresholding, shifts by the
            size of the image, has an unknown prediction type, or asks an ε-prediction for x_0 where the terminal SNR is
            zero.
    """
    if isinstance(source, NoiseSchedule):
        return source
    name = type(source).__name__
    if name in REFUSED:
        raise ConfigurationError(f"{name} is not supported: {REFUSED[name]}.")
    if not hasattr(source, "config"):
        raise ConfigurationError(
            f"The scheduler is {source!r}, which is none of diffusers' classes with settings that it takes; expected "
            "one, such as `scheduler: {class_path: diffusers.DDIMScheduler, init_args: {prediction_type: "
            "v_prediction}}`."
        )
    if name in READ:
        return READ[name](source)
    if source.config.get("use_flow_sigmas", False):
        return FlowMatchSchedule(source)
    if isinstance(source, _HasTable) and isinstance(source.alphas_cumprod, Tensor):
        return VariancePreservingSchedule(source)
    raise ConfigurationError(
        f"{name} has no table of ᾱ_t (`alphas_cumprod`). Use a variance-preserving diffusers scheduler, such as "
        f"DDIMScheduler or DDPMScheduler, or one of {', '.join(READ)}."
    )
