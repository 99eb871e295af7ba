"""What can be read off a DDIM trajectory. Each analysis sees one step at a time and keeps sums, not samples."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmprobe.analysis.basis import LatentBasis
from ldmprobe.analysis.divergence import paired_gaussian_kl, softmax_kl
from ldmprobe.analysis.moments import PairedMoments, jackknife_interval
from ldmprobe.analysis.pca import PCABasis
from ldmprobe.analysis.reference import ideal_ddim
from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.diffusion.trajectory import DDIMStep
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.probe import Ranks, sample_noise
from ldmprobe.probing.record import Curve, Scatter
from ldmprobe.probing.reference import Reference


@dataclass(frozen=True)
class Trajectory:
    """What an analysis may know before the first step.

    Attributes:
        sample_ids: this rank's samples, (n,); ``num_samples`` in all.
        reference: real latents, or None.
    """

    model: DiffusionModel
    grid: SamplingGrid
    sample_ids: Tensor
    num_samples: int
    reference: Reference | None
    ranks: Ranks


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


class StepKL(Analysis):
    """KL divergence of the latents before and after each pass through the denoiser (Roh et al.), in nats per dimension.

    Curves, all over the timestep going in:

    ==================  ====================================================================================
    step_kl             Gaussian-moment KL(before ‖ after) in the reference's basis, paired correction,
                        95 % jackknife interval over trajectories
    step_kl_reverse     KL(after ‖ before)
    step_kl_ideal       the same for a *perfect* denoiser of Gaussian data with real latents' moments, in closed form
    step_kl_forward     KL(q_t ‖ q_s) of the forward process between the same two noise levels
    step_kl_softmax     paper-style softmax KL
    ==================  ====================================================================================

    The raw curve is near 0 early and steep late for a perfect model too: read it against ``step_kl_ideal`` only. Without
    reference the two closed-form curves are left out and the basis is a 2-D cosine transform.
    """

    def begin(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        reference = trajectory.reference
        self.basis = _cosine_basis(trajectory.model.latent_shape) if reference is None else reference.basis
        self.rows: list[dict[str, float]] = []
        self.before: Tensor | None = None

    def update(self, step: DDIMStep) -> None:
        ranks, ids = self.trajectory.ranks, self.trajectory.sample_ids
        before = self.basis.rotate(step.z_t) if self.before is None else self.before
        after = self.basis.rotate(step.z_s)
        local = PairedMoments.from_samples(before, after, ids)
        moments = PairedMoments(ranks.all_reduce_sum(local.n), ranks.all_reduce_sum(local.sums))
        total, left_out = moments.total(), moments.leave_one_out()
        kl = paired_gaussian_kl(total).nanmean()
        lower, upper = jackknife_interval(kl, paired_gaussian_kl(left_out).nanmean(-1))
        soft_sum = torch.zeros(2, dtype=torch.float64, device=before.device)  # Σ, n
        if len(ids):
            soft_sum[0] = softmax_kl(step.z_t.flatten(1), step.z_s.flatten(1)) * len(ids)
            soft_sum[1] = len(ids)
        soft_sum = ranks.all_reduce_sum(soft_sum)
        self.rows.append(
            {
                "step_kl": float(kl),
                "lower": float(lower),
                "upper": float(upper),
                "step_kl_reverse": float(paired_gaussian_kl(total, reverse=True).nanmean()),
                "step_kl_softmax": float(soft_sum[0] / soft_sum[1]),
            }
        )
        self.before = after

    def finish(self) -> Findings:
        grid, reference = self.trajectory.grid, self.trajectory.reference
        column = {name: np.array([row[name] for row in self.rows]) for name in self.rows[0]}
        values = {name: column[name] for name in ("step_kl", "step_kl_reverse", "step_kl_softmax")}
        if reference is not None:
            ideal = ideal_ddim(
                self.basis.mean, self.basis.variance, grid.alpha_t, grid.sigma_t, grid.alpha_s, grid.sigma_s
            )
            values["step_kl_ideal"] = ideal.step_kl().mean(1).numpy()
            values["step_kl_forward"] = ideal.forward_step_kl().mean(1).numpy()
        curves = {name: Curve(grid.timesteps.numpy(), grid.log_snr.numpy(), value) for name, value in values.items()}
        curves["step_kl"] = Curve(
            grid.timesteps.numpy(), grid.log_snr.numpy(), column["step_kl"], column["lower"], column["upper"]
        )
        provenance = {"kl_basis": self.basis.kind, "kl_dimension": int(np.prod(self.basis.shape))}
        return Findings(curves=curves, provenance=provenance)


class PCAScatter(Analysis):
    """2-D projections of the latents at a few noise levels, on two principal components fitted once on real latents.

    Scatters ``pca`` (samples) and ``pca_real`` (real latents noised to the same level: where samples should be), and the
    scalars ``pca_explained_1``, ``pca_explained_2`` (shares of real latents' variance). Coordinates are about α_t · mean.
    Without reference, the components are those of this probe's own final samples, and there is no ``pca_real``.

    Args:
        num_levels: how many, evenly spaced in sampling steps, from pure noise to the final latents.
    """

    def __init__(self, num_levels: int = 6) -> None:
        if num_levels < 2:
            raise ConfigurationError(f"PCAScatter got num_levels {num_levels}; expected at least 2.")
        self.num_levels = num_levels

    def begin(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        last = trajectory.grid.num_steps
        self.levels = sorted({round(k) for k in np.linspace(0, last, min(self.num_levels, last + 1))})
        self.kept: dict[int, Tensor] = {}  # level → (n, 2), or latents where the basis is yet to come
        self.final: Tensor | None = None

    def update(self, step: DDIMStep) -> None:
        if step.index in self.levels:
            self._keep(step.index, step.z_t)
        if step.index == self.trajectory.grid.num_steps - 1:
            self._keep(step.index + 1, step.z_s)

    def _keep(self, level: int, z: Tensor) -> None:
        reference = self.trajectory.reference
        flat = z.flatten(1).float()
        self.kept[level] = flat if reference is None else reference.pca.project(flat, self._level(level)[1])

    def _level(self, level: int) -> tuple[int, float, float]:
        """(timestep, α, σ) of the latents after ``level`` steps."""
        grid = self.trajectory.grid
        if level < grid.num_steps:
            return int(grid.timesteps[level]), float(grid.alpha_t[level]), float(grid.sigma_t[level])
        return 0, float(grid.alpha_s[-1]), float(grid.sigma_s[-1])

    def finish(self) -> Findings:
        t = self.trajectory
        reference = t.reference
        if reference is None:
            final = t.ranks.gather_rows(self.kept[t.grid.num_steps], t.sample_ids, t.num_samples)
            pca = PCABasis.fit(final)
            kept = {level: pca.project(z, self._level(level)[1]) for level, z in self.kept.items()}
        else:
            pca, kept = reference.pca, self.kept
        findings = Findings(
            scatters={"pca": []}, provenance={"pca_basis": "real latents" if reference else "own final samples"}
        )
        for axis in (0, 1):
            findings.scalars[f"pca_explained_{axis + 1}"] = float(pca.explained[axis])
        for level, local in kept.items():
            timestep, alpha, sigma = self._level(level)
            log_snr = 2 * float(np.log(alpha) - np.log(sigma)) if alpha > 0 and sigma > 0 else float("nan")
            xy = t.ranks.gather_rows(local, t.sample_ids, t.num_samples).numpy()
            findings.scatters["pca"].append(Scatter(timestep, log_snr, xy))
            if reference is not None:
                # Two orthonormal projections of white noise are white noise.
                noise = sample_noise(range(len(reference.cloud)), (2,), seed=0, stream=level)
                cloud = (alpha * reference.cloud + sigma * noise).double().numpy()
                findings.scatters.setdefault("pca_real", []).append(Scatter(timestep, log_snr, cloud))
        return findings


class SampleImages(Analysis):
    """The first samples, decoded: images ``samples``, as PNG.

    Args:
        num_images: how many.
    """

    def __init__(self, num_images: int = 20) -> None:
        if num_images < 1:
            raise ConfigurationError(f"SampleImages got num_images {num_images}; expected at least 1.")
        self.num_images = num_images

    def begin(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.final: Tensor | None = None

    def update(self, step: DDIMStep) -> None:
        if step.index == self.trajectory.grid.num_steps - 1:
            self.final = step.z_s

    def finish(self) -> Findings:
        t = self.trajectory
        number = min(self.num_images, t.num_samples)
        mine = t.sample_ids < number
        assert self.final is not None
        chosen = self.final[mine.to(self.final.device)]
        # A rank with no chosen sample decodes one anyway, to know the shape of an image.
        decoded = t.model.codec.decode(chosen if len(chosen) else self.final[:1])[: len(chosen)]
        images = t.ranks.gather_rows(decoded, t.sample_ids[mine], number)
        return Findings(images={"samples": [png_bytes(image) for image in images]})


def png_bytes(image: Tensor) -> bytes:
    """An image (C, H, W) in [−1, 1] as PNG; the first of two or more than four channels is shown in grey."""
    from PIL import Image

    array = ((image.detach().cpu().nan_to_num().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    picture = Image.fromarray(array.transpose(1, 2, 0)) if len(array) in (3, 4) else Image.fromarray(array[0])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _cosine_basis(shape: tuple[int, ...]) -> LatentBasis:
    return LatentBasis("dct", shape, torch.eye(shape[0], dtype=torch.float64), torch.empty(0), torch.empty(0))
