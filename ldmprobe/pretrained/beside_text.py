"""What a pipeline's network is told beside text: the conditioning that fills the further channels of its network."""

from __future__ import annotations

from ldmprobe.models.conditioning import Conditioning, Conditions, LowResolution, Masked, StyleSource
from ldmprobe.types import Component

_TABLE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
_LEVEL = 20  # the noise_level of StableDiffusionUpscalePipeline.__call__
_DROPOUT = 0.05  # of InstructPix2Pix: of either and of both


def beside_text(pipeline: Component, text: Conditioning) -> Conditioning:
    """Return what the network of ``pipeline`` is told, given the conditioning of its text."""
    name = type(pipeline).__name__
    if name == "StableDiffusionInpaintPipeline":
        return Conditions([Masked(cells="nearest"), text])
    if name == "StableDiffusionInstructPix2PixPipeline":
        return Conditions([StyleSource(dropout=_DROPOUT, present=False, scaled=False), text], dropout=_DROPOUT)
    if name != "StableDiffusionUpscalePipeline":
        return text
    highest = pipeline.config.max_noise_level
    small = LowResolution(
        pipeline.vae_scale_factor,
        "bicubic",
        noise_levels=highest,
        sampling_level=min(_LEVEL, highest),
        scheduler={name: pipeline.low_res_scheduler.config[name] for name in _TABLE},
    )
    return Conditions([small, text])
