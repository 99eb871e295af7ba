"""What a guidance is: a wrapper of a denoiser, which knows no sampler."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import Conditioning, Shown
from ldmprobe.models.denoiser import Condition
from ldmprobe.types import PlainValues


@dataclass(frozen=True)
class Asked:
    """Where a network is asked, and about which samples.

    Attributes:
        timesteps: (N,), what the network is told of the level.
        alpha, sigma: the level, one for all samples.
        sample_ids: (N,), int64, on the CPU: the numbers of the samples; None where they are nobody's.
    """

    timesteps: Tensor
    alpha: float
    sigma: float
    sample_ids: Tensor | None = None

    def __getitem__(self, chunk: slice) -> Asked:
        ids = None if self.sample_ids is None else self.sample_ids[chunk]
        return Asked(self.timesteps[chunk], self.alpha, self.sigma, ids)

    @property
    def numbers(self) -> Tensor:
        """The numbers of the samples, for a guidance that has something of its own for each.

        Raises:
            ConfigurationError: they are not known.
        """
        if self.sample_ids is None:
            raise ConfigurationError(
                "The guidance has something of its own for each sample; give `predictor` their `sample_ids`."
            )
        return self.sample_ids


Answer = Callable[[Tensor, Asked, Condition], Tensor]
"""(z_t (N, …), where it is asked, condition of each sample) → the network's answer (N, …)."""


class Guided(Protocol):
    """A model as its guidance sees it: a ``DiffusionModel``."""

    network: nn.Module
    schedule: NoiseSchedule
    latent_shape: tuple[int, ...]
    codec: LatentCodec
    conditioning: Conditioning

    @property
    def device(self) -> torch.device: ...


class Guidance(ABC):
    """Turns the answers of a network into guided ones."""

    def at(self, log_snr: float) -> Guidance:
        """Return the guidance at noise levels of this log-SNR: by default, the same at all."""
        return self

    def prepared(self, held_out: Callable[[int], Tensor]) -> Guidance:
        """Return the guidance with what it takes of held-out images; by default itself, which takes nothing.

        Args:
            held_out: returns so many images, or as many as there are, (K, C, H, W) in [−1, 1].
        """
        return self

    def shown(self, sample_ids: Tensor) -> Shown | None:
        """Return what is shown beside samples, where they are guided by pictures."""
        return None

    @abstractmethod
    def guide(self, answer: Answer, model: Guided) -> Answer:
        """Return ``answer`` guided. What does not depend on the latents is made here, once for all steps."""

    @property
    @abstractmethod
    def provenance(self) -> PlainValues:
        """Return what a record says of it, as plain values; two guidances that say the same sample alike."""

    @property
    @abstractmethod
    def shifts(self) -> bool:
        """Return whether it moves the samples' distribution, so that curves are no longer comparable with the ideal."""

    @abstractmethod
    def check(self, model: Guided) -> None:
        """Raise ConfigurationError, before anything is sampled, where there is nothing to guide by."""


class GuidanceAround(Guidance):
    """A guidance around another one, whose answers it guides further.

    Attributes:
        guidance: the other one.
    """

    guidance: Guidance

    def _around(self, guidance: Guidance) -> Guidance:
        if guidance is self.guidance:
            return self
        other = copy.copy(self)
        other.guidance = guidance
        return other

    def at(self, log_snr: float) -> Guidance:
        return self._around(self.guidance.at(log_snr))

    def prepared(self, held_out: Callable[[int], Tensor]) -> Guidance:
        return self._around(self.guidance.prepared(held_out))

    def shown(self, sample_ids: Tensor) -> Shown | None:
        return self.guidance.shown(sample_ids)

    def check(self, model: Guided) -> None:
        self.guidance.check(model)
