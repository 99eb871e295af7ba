"""What an analysis of DDIM trajectories is: it sees one step at a time and keeps sums, not samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ldmprobe.analysis.basis import LatentBasis
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.diffusion.trajectory import DDIMStep
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.record import Curve, Scatter
from ldmprobe.probing.reference import Reference


@dataclass(frozen=True)
class Trajectory:
    """What an analysis may know before the first step.

    Attributes:
        sample_ids: this rank's samples, (n,); ``num_samples`` in all.
        reference, held_out: real latents, or None.
    """

    model: DiffusionModel
    grid: SamplingGrid
    sample_ids: Tensor
    num_samples: int
    reference: Reference | None
    ranks: Ranks
    held_out: HeldOut | None = None

    @property
    def basis(self) -> LatentBasis:
        """The reference's decorrelating basis, or a 2-D cosine transform where there is none."""
        return cosine_basis(self.model.latent_shape) if self.reference is None else self.reference.basis

    def curve(self, value: Any, lower: Any = None, upper: Any = None) -> Curve:
        """A number per step as a curve over the grid."""
        timesteps = self.grid.timesteps.round().long().numpy()
        return Curve(timesteps, self.grid.log_snr.numpy(), value, lower, upper)


@dataclass
class Findings:
    """An analysis's part of a :class:`~ldmprobe.probing.record.ProbeRecord`."""

    scalars: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    scatters: dict[str, list[Scatter]] = field(default_factory=dict)
    images: dict[str, list[bytes]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def update(self, other: Findings) -> None:
        """Take in another analysis's findings."""
        for name in ("scalars", "curves", "scatters", "images", "provenance"):
            getattr(self, name).update(getattr(other, name))


class Analysis(ABC):
    """Begins with a trajectory, is shown each step in order, and finishes with findings. Reusable: ``begin`` starts afresh.

    Under several ranks every method is called on each of them, so that it may sum over them.
    """

    @abstractmethod
    def begin(self, trajectory: Trajectory) -> None: ...

    @abstractmethod
    def update(self, step: DDIMStep) -> None: ...

    @abstractmethod
    def finish(self) -> Findings: ...


def cosine_basis(shape: tuple[int, ...]) -> LatentBasis:
    """A 2-D cosine transform per channel: decorrelates natural latents well enough without having seen any."""
    return LatentBasis("dct", shape, torch.eye(shape[0], dtype=torch.float64), torch.empty(0), torch.empty(0))
