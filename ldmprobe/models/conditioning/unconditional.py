"""The conditioning of an unconditional model."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmprobe.models.conditioning.base import Conditioning
from ldmprobe.models.denoiser import Condition
from ldmprobe.types import Batch


class Unconditional(Conditioning):
    """A conditioning that tells the network nothing."""

    def from_batch(self, batch: Batch) -> Condition:
        return {}

    def for_samples(self, sample_ids: Tensor) -> Condition:
        return {}

    def null(self, num_samples: int, device: torch.device) -> Condition:
        return {}

    def pipeline_name(self, network: str, latents: bool, flow: bool) -> str | None:
        if network != "UNet2DModel":
            return None
        if not latents:
            return "DDPMPipeline" if flow else "DDIMPipeline"
        return None if flow else "LDMPipeline"
