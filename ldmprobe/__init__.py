"""ldmprobe: train latent diffusion models with Lightning and see, per noise level, what they have learnt.

The names below are the public ones. They are imported on first use, so that ``import ldmprobe`` (and ``ldmprobe --help``)
does not pay for torch, lightning and diffusers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ConfigurationError": "ldmprobe.errors",
    "DiffusionModel": "ldmprobe.models.diffusion_model",
    "ImageData": "ldmprobe.data.images",
    "LatentCodec": "ldmprobe.models.codec",
    "LatentDiffusion": "ldmprobe.training.latent_diffusion",
    "NoiseSchedule": "ldmprobe.diffusion.schedule",
    "ProbeRecord": "ldmprobe.io.record",
    "RecordStore": "ldmprobe.io.store",
    "probe": "ldmprobe.plain_loop",
    "probe_ddim": "ldmprobe.probing.ddim",
    "probe_denoising": "ldmprobe.probing.denoising",
    "write_report": "ldmprobe.tracking.report",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 (names, computed)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'ldmprobe' has no attribute {name!r}")
