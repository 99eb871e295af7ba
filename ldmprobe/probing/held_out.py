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
from ldmprobe.probing.latent_statistics import LatentStatistics, latents_of
from ldmprobe.types import Batch

_SUMS = 64


@dataclass(frozen=True)
class HeldOut:
    """Held-out latents (N, C, H, W) with the condition of each, on the CPU; the same on every rank."""

    latents: Tensor
    condition: Condition

    @property
    def outline(self) -> list[str]:
        """Return what a fingerprint tells them from others by, and not by how they were rounded: their number, and 64
        sums of the latents' means (of every 64th latent), in which each counts by its place, to a hundredth of their
        root mean square.
        """
        means = self.latents.flatten(1).double().mean(1)
        place = torch.arange(len(means))
        sums = torch.zeros(_SUMS).double().index_add(0, place % _SUMS, (1 + place // _SUMS) * means)
        size = float(sums.pow(2).mean().sqrt())
        return [str(len(means)), f"{size:.2e}", *(f"{total:.2f}" for total in (sums / (size or 1.0)).tolist())]

    def check_reference(self, reference: LatentStatistics) -> None:
        """Raise ConfigurationError if the reference was fitted on latents of another shape."""
        fitted, given = tuple(reference.basis.shape), tuple(self.latents.shape[1:])
        if fitted != given:
            raise ConfigurationError(
                f"The reference was fitted on latents of shape {fitted}, the held-out ones are {given}; use the same "
                "data and codec for both."
            )

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
