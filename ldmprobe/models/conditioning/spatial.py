"""A picture beside z_t: what all conditionings that are joined to the latents along channels have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning.observed import Observed, ObservedConditioning
from ldmprobe.models.conditioning.protocols import ConditioningData
from ldmprobe.models.denoiser import CONCAT, Condition
from ldmprobe.types import PlainValues


class SpatialConditioning(ObservedConditioning):
    """A picture beside z_t, and one channel more that is 1 where there is a picture: without one all channels are 0,
    which a gray picture could be, too.

    Args:
        dropout: share of training samples without a picture, for classifier-free guidance.
        num_rows: of how many held-out rows samples have the pictures, in turn.
        present: whether there is the channel that says so. The network's `in_channels` are those of the latents, of the
            picture and of this.

    Attributes:
        channels: C' of the picture, known once it is prepared.
    """

    _KNOWN_LATER = (*ObservedConditioning._KNOWN_LATER, "channels")

    def __init__(self, dropout: float = 0.1, num_rows: int = 64, present: bool = True) -> None:
        super().__init__(dropout, num_rows)
        self.present = present
        self.channels = 0

    @abstractmethod
    def picture(self, observed: Observed) -> Tensor:
        """Return the pictures (N, C', h, w) of what was observed."""

    def condition(self, observed: Observed, ids: Tensor) -> Condition:
        return self.joined(self.picture(observed))

    def joined(self, picture: Tensor) -> Condition:
        """Return pictures as a condition, with the channel that says that they are there."""
        return {CONCAT: torch.cat([picture, torch.ones_like(picture[:, :1])], dim=1) if self.present else picture}

    def null(self, num_samples: int, device: torch.device) -> Condition:
        return {CONCAT: torch.zeros(num_samples, self.channels + self.present, *self.latent_size, device=device)}

    def prepare(self, network: nn.Module, data: ConditioningData, codec: LatentCodec) -> None:
        super().prepare(network, data, codec)
        self.channels = self.picture(self._kept(torch.zeros(1, dtype=torch.long), truth=False)).shape[1]

    @property
    def spec(self) -> PlainValues:
        return {**super().spec, "present": self.present}

    @property
    def _sizes(self) -> PlainValues:
        return {**super()._sizes, "channels": self.channels}

    def _take_sizes(self, spec: PlainValues) -> None:
        super()._take_sizes(spec)
        self.channels = spec["channels"]
