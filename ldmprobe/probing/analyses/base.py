"""The interface of an analysis of sampling trajectories: it sees one step at a time and keeps sums, not samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ldmprobe.analysis.basis import LatentBasis, Rotation
from ldmprobe.analysis.divergence import gaussian_kl_to_known
from ldmprobe.analysis.ideal import IdealPath, ideal_curves
from ldmprobe.analysis.intervals import NORMAL, jackknife
from ldmprobe.analysis.moments import PairedMoments
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve, Scatter
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses.true_latents import TrueLatents
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.probe import Ranks
from ldmprobe.probing.sampling import Sampling, grid_fingerprint, sample_trajectory
from ldmprobe.types import PlainValues


@dataclass(frozen=True)
class Trajectory:
    """All that an analysis may know before the first step.

    Attributes:
        sampling, grid: how the samples are drawn, and the noise levels of the steps.
        sample_ids: this rank's samples, (n,); ``num_samples`` in all.
        reference, held_out: real latents, or None.
    """

    model: DiffusionModel
    sampling: Sampling
    grid: SamplingGrid
    sample_ids: Tensor
    reference: LatentStatistics | None
    ranks: Ranks
    held_out: HeldOut | None = None
    _true_latents: dict[int, TrueLatents] = field(default_factory=dict, init=False, repr=False, compare=False)

    def steps(self) -> Iterator[SamplingStep]:
        """Yield the sampling steps of this rank's samples; every rank takes as many passes."""
        n = len(self.sample_ids)
        for step in sample_trajectory(self.model, self.sampling, self.grid, self.ranks.even_share(self.num_samples)):
            yield replace(step, z_t=step.z_t[:n], z_s=step.z_s[:n], x0=step.x0[:n], epsilon=step.epsilon[:n])

    def true_latents(self, at_most: int) -> TrueLatents:
        """Return the first ``at_most`` held-out latents on the levels of the steps, the same for all who ask."""
        assert self.held_out is not None
        number = min(at_most, len(self.held_out.latents))
        if number not in self._true_latents:
            self._true_latents[number] = TrueLatents(self.model, self.grid, self.held_out, number, self.ranks)
        return self._true_latents[number]

    @property
    def rotation(self) -> Rotation:
        """The directions of the reference's basis, or a 2-D cosine transform where there is none."""
        return Rotation.cosine(self.model.latent_shape) if self.reference is None else self.reference.basis.rotation

    @property
    def has_ideal(self) -> bool:
        """Return whether there is a closed form to compare with: not where x̂_0 is clipped, which is not affine, nor
        under guidance or from images, which move the samples away from real latents by design.
        """
        return self.grid.clip_range is None and not self.sampling.shifted_by

    def ideal(self, name: str, curves_of: Callable[[IdealPath], Tensor]) -> tuple[Tensor, Tensor]:
        """Return curves of a perfect denoiser of Gaussian data by ``Sampler.of_ideal``, and their half-widths: computed
        once for all probes with the same reference, sampler and grid. All NaN where there is no ideal.

        Args:
            name: of the curves.
            curves_of: the curves of one path; positive, of any shape.
        """
        grid = self.grid

        def of_path() -> tuple[Tensor, Tensor]:
            assert self.reference is not None
            program = self.sampling.sampler.of_ideal.program(replace(grid, clip_range=None))
            return ideal_curves(self.reference.basis, program, grid, curves_of)

        value, half_width = self.once(name, of_path)
        return (value, half_width) if self.has_ideal else (value * torch.nan, half_width * torch.nan)

    def once(self, name: str, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return what ``compute`` does, called once for all probes with the same reference, sampler and grid."""
        assert self.reference is not None
        key = f"{name}, {self.sampling.sampler.in_words}, {grid_fingerprint(self.grid)}"
        if key not in self.reference.ideals:
            self.reference.ideals[key] = compute()
        return self.reference.ideals[key]

    @property
    def num_samples(self) -> int:
        return self.sampling.num_samples

    @cached_property
    def timesteps(self) -> np.ndarray:
        """The training timestep that is nearest to the start of each step, (S,), whatever the network is told there."""
        return self.model.schedule.timesteps_at(self.grid.log_snr).numpy()

    def curve(self, value: np.ndarray, lower: np.ndarray | None = None, upper: np.ndarray | None = None) -> Curve:
        """A number per step as a curve over the grid."""
        return Curve(self.timesteps, self.grid.log_snr.numpy(), value, lower, upper)

    def curve_around(self, value: ArrayLike, half_width: ArrayLike) -> Curve:
        """The same, in the middle of its interval."""
        return Curve.around(self.timesteps, self.grid.log_snr, value, half_width)


@dataclass
class Findings:
    """An analysis's part of a `ProbeRecord`.

    The provenance may hold ``notes``: by metric, a sentence that this record adds to its meaning.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    scatters: dict[str, list[Scatter]] = field(default_factory=dict)
    images: dict[str, list[bytes]] = field(default_factory=dict)
    provenance: PlainValues = field(default_factory=dict)

    def update(self, other: Findings) -> None:
        """Take in another analysis's findings."""
        self.scalars |= other.scalars
        self.curves |= other.curves
        self.scatters |= other.scatters
        self.images |= other.images
        notes = {**self.provenance.get("notes", {}), **other.provenance.get("notes", {})}
        self.provenance |= other.provenance | ({"notes": notes} if notes else {})


class Analysis(ABC):
    """Begins with a trajectory, is shown each step in order, and finishes with findings. Reusable: ``begin`` starts
    afresh.

    Under several ranks every method is called on each of them, so that it may sum over them.

    Attributes:
        metrics: what its scalars and curves mean; loggers, report and comparisons show them by it.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()

    @abstractmethod
    def begin(self, trajectory: Trajectory) -> None: ...

    @abstractmethod
    def update(self, step: SamplingStep) -> None: ...

    @abstractmethod
    def finish(self) -> Findings: ...


def analyzed(
    trajectory: Trajectory, analyses: Sequence[Analysis], seen: Callable[[SamplingStep], None] = lambda step: None
) -> Findings:
    """Show every step of a trajectory to the analyses, in order, and return what they find.

    Args:
        seen: called after each step.
    """
    for analysis in analyses:
        analysis.begin(trajectory)
    for step in trajectory.steps():
        for analysis in analyses:
            analysis.update(step)
        seen(step)
    found = Findings()
    for analysis in analyses:
        found.update(analysis.finish())
    return found


def gap_to_real(
    moments: PairedMoments, basis: LatentBasis, alpha: float, sigma: float, parts: Sequence[Tensor] = ()
) -> np.ndarray:
    """KL of sampled latents from real ones noised to a level, whose moments are α μ and α² λ + σ², mean over the
    directions along which real latents vary, and over each of ``parts`` of the directions: nats per dimension,
    corrected for both finite numbers, with the 95 % interval by jackknives over both.

    Args:
        moments: of the sampled latents in the basis, by jackknife group.
        parts: numbers of directions, or a mask (D,).

    Returns:
        value, lower and upper end, (3, 1 + P).
    """

    def gap(sampled: PairedMoments, mean: Tensor, variance: Tensor) -> Tensor:
        known = ((alpha * mean).to(sampled.n.device), (alpha**2 * variance + sigma**2).to(sampled.n.device))
        kl = gaussian_kl_to_known(sampled.n, sampled.mean_x, sampled.var_x, *known)
        return torch.stack([kl[..., part].nanmean(-1) for part in (basis.varies, *parts)], dim=-1)

    whole = moments.total()
    value = gap(whole, basis.mean, basis.variance)
    _, of_samples = jackknife(value, gap(moments.leave_one_out(), basis.mean, basis.variance))
    corrected, of_reference = basis.jackknife(partial(gap, whole))
    half_width = NORMAL * (of_samples**2 + of_reference**2).sqrt()
    return torch.stack([corrected, corrected - half_width, corrected + half_width]).cpu().numpy()
