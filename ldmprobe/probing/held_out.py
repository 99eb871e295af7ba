"""HeldOut: latents that training has not seen, with their conditions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning
from ldmprobe.models.denoiser import Condition
from ldmprobe.probing.reference import latents_of
from ldmprobe.types import Batch


@dataclass(frozen=True)
class HeldOut:
    """Held-out latents (N, C, H, W) with the condition of each, on the CPU; the same on every rank."""

    latents: Tensor
    condition: Condition

    def first(self, number: int) -> HeldOut:
        """Return the first ``number`` of them, or as many as there are."""
        return HeldOut(self.latents[:number], {name: value[:number] for name, value in self.condition.items()})

    @classmethod
    def encode(cls, codec: LatentCodec, conditioning: Conditioning, batches: Iterable[Batch]) -> HeldOut:
        """From batches of held-out images."""
        latents, conditions = [], []
        for batch in batches:
            latents.append(latents_of(codec, [batch]))
            conditions.append(conditioning.from_batch(batch))
        if not latents:
            raise ConfigurationError("There are no held-out images to probe with.")
        merged = {name: torch.cat([condition[name].cpu() for condition in conditions]) for name in conditions[0]}
        return cls(torch.cat(latents), merged)
