"""StepKL: the paper's KL before and after each denoiser pass, beside that of a perfect denoiser."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from ldmprobe.analysis.basis import LatentBasis
from ldmprobe.analysis.divergence import gaussian_js, gaussian_kl, paired_gaussian_kl, softmax_kl
from ldmprobe.analysis.ideal import IdealPath
from ldmprobe.analysis.intervals import NORMAL, jackknife, jackknife_interval
from ldmprobe.analysis.moments import PairedMoments
from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.errors import check_numbers
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import Curve
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory
from ldmprobe.types import Batch, PlainValues

_per_pass = partial(Metric, unit="nats per dimension", log=True)


class StepKL(Analysis):
    """KL divergence of the latents before and after each pass through the denoiser (Roh et al.), over the timestep
    going in.

    It is of the latents' moment-matched Gaussians in the reference's basis, corrected for the pairing of samples, with
    a 95 % jackknife interval over trajectories; the closed forms' intervals are those of the finite number of real
    latents. Eigen-bands split the basis's directions into equal parts by real latents' variance, band 0 the largest.
    Without a reference the closed forms and bands are left out, and the basis is a 2-D cosine transform. Directions
    along which real latents do not vary are left out of everything, since a perfect model's KL along them has no bound;
    the provenance counts them, and those along which samples alone have ceased to vary.

    Args:
        num_bands: eigen-bands.
    """

    metrics = (
        _per_pass(
            "step_kl", "KL before and after each denoiser pass",
            "The paper's measurement: how much one pass changes the distribution of the latents. A perfect model "
            "shows this shape too, near 0 early and steep late: read a curve only by its distance from the dashed "
            "ideal, of Gaussian data, and from the dotted ones, of the training latents as they are.",
            ideal="step_kl_ideal", beside=("step_kl_memorizer", "step_kl_mixture", "step_kl_forward"), shown="headline",
        ),
        _per_pass(
            "step_kl_ratio", "KL per pass ÷ its ideal",
            "1 is what a perfect denoiser of Gaussian data with the real latents' mean and covariance would do. A "
            "level that stays away from 1, or drifts, is where to look first; real latents are not Gaussian, so a "
            "healthy model need not reach 1 everywhere. The dotted ideals of the chart before show by how much.",
            unit="KL ÷ ideal KL", ideal=1.0, pool="mean", shown="headline",
        ),
        _per_pass(
            "step_kl_ideal", "ideal: perfect denoiser",
            "Closed form, for Gaussian data with the real latents' moments.", shown="record",
        ),
        _per_pass(
            "step_kl_forward", "forward process",
            "KL(q_t ‖ q_s) of the forward process between the same two noise levels.", shown="record",
        ),
        _per_pass(
            "step_kl_floor", "Finite-sample bias of the KL",
            "What an uncorrected estimate would read above it, from the finite number of samples alone.",
            shown="record",
        ),
        _per_pass("step_kl_reverse", "KL(after ‖ before)"),
        _per_pass(
            "step_kl_js", "Jensen-Shannon divergence of a pass",
            "Between the moment-matched Gaussians, at most ln 2; not corrected for the number of samples.",
        ),
        _per_pass("step_kl_softmax", "Softmax KL", "As the paper computes it, in nats."),
        _per_pass(
            "step_kl_ratio/*", "KL ÷ ideal within an eigen-band",
            "1 for a perfect model, whatever the steps. Band 0 has the directions of the largest variance.",
            unit="KL ÷ ideal KL", ideal=1.0, shown="record",
        ),
        _per_pass(
            "variance_ratio/*", "Variance of the samples ÷ real, by eigen-band",
            "The latest probe. Below its dashed line a band's samples have lost variety along those directions; above"
            " it they hold noise that real latents do not. The dashed lines are a perfect denoiser's: the length of "
            "the steps alone takes it below 1.",
            unit="variance of samples ÷ real", ideal="variance_ratio_ideal/*",
        ),
        _per_pass(
            "variance_ratio_ideal/*", "ideal: perfect denoiser", "Below 1 by what the steps' length costs.",
            unit="variance of samples ÷ real", shown="record",
        ),
    )  # fmt: skip

    def __init__(self, num_bands: int = 4) -> None:
        check_numbers("StepKL", 1, num_bands=num_bands)
        self.num_bands = num_bands

    def begin(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.rotation, self.reference = trajectory.rotation, trajectory.reference
        dimension = int(np.prod(self.rotation.shape))
        self.kept, self.bands = torch.ones(dimension, dtype=torch.bool), []
        if self.reference is not None:
            self.kept, self.bands = self.reference.basis.varies, self.reference.basis.bands(self.num_bands)
        self.rows: list[Batch] = []
        self.before: Tensor | None = None
        self.collapsed = 0

    def update(self, step: SamplingStep) -> None:
        ranks, ids, kept = self.trajectory.ranks, self.trajectory.sample_ids, self.kept
        before = self.rotation(step.z_t) if self.before is None else self.before
        after = self.rotation(step.z_s)
        moments = PairedMoments.from_samples(before, after, ids).summed(ranks.all_reduce_sum)
        total, left_out = moments.total(), moments.leave_one_out()
        per_direction, replicates = paired_gaussian_kl(total), paired_gaussian_kl(left_out)
        kl = per_direction[kept].nanmean()
        lower, upper = jackknife_interval(kl, replicates[:, kept].nanmean(-1))
        raw = gaussian_kl(total.mean_x, total.var_x, total.mean_y, total.var_y)
        js = gaussian_js(total.mean_x, total.var_x, total.mean_y, total.var_y)
        self.rows.append(
            {
                "step_kl": float(kl),
                "lower": float(lower),
                "upper": float(upper),
                "step_kl_floor": float((raw - per_direction)[kept].nanmean()),
                "step_kl_reverse": float(paired_gaussian_kl(total, reverse=True)[kept].nanmean()),
                "step_kl_js": float(js[kept].nanmean()),
                "step_kl_softmax": self._softmax_kl(step),
                "bands": [self._in_band(band, per_direction, replicates) for band in self.bands],
                "variance": total.var_y.cpu(),
                "variance_without": [left_out.var_y[:, band].cpu() for band in self.bands],
            }
        )
        self.collapsed = int((kept.to(after.device) & ~total.varies).sum())
        self.before = after

    @staticmethod
    def _in_band(band: Tensor, per_direction: Tensor, replicates: Tensor) -> tuple[float, float]:
        """Mean over a band's directions and its standard error."""
        value = per_direction[band].nanmean()
        return float(value), float(jackknife(value, replicates[:, band].nanmean(-1))[1])

    def _softmax_kl(self, step: SamplingStep) -> float:
        ids = self.trajectory.sample_ids
        sums = torch.zeros(2, dtype=torch.float64, device=step.z_t.device)  # Σ, n
        if len(ids):
            sums[0] = softmax_kl(step.z_t.flatten(1), step.z_s.flatten(1)) * len(ids)
            sums[1] = len(ids)
        total, count = self.trajectory.ranks.all_reduce_sum(sums).tolist()
        return float(total / count)

    def finish(self) -> Findings:
        trajectory = self.trajectory
        names = ("step_kl", "step_kl_floor", "step_kl_reverse", "step_kl_js", "step_kl_softmax", "lower", "upper")
        column = {name: np.array([row[name] for row in self.rows]) for name in names}
        lower, upper = column.pop("lower"), column.pop("upper")
        curves = {name: trajectory.curve(value) for name, value in column.items()}
        curves["step_kl"] = trajectory.curve(column["step_kl"], lower, upper)
        if self.reference is not None:
            curves |= self._beside_ideal(self.reference.basis)
            ideal = curves["step_kl_ideal"].value
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio, width = (value / ideal for value in (column["step_kl"], (upper - lower) / 2))
                width = np.hypot(width, ratio * (curves["step_kl_ideal"].upper - ideal) / ideal)
            curves["step_kl_ratio"] = trajectory.curve_around(ratio, width)
        without = int((~self.kept).sum())
        provenance: PlainValues = {
            "kl_basis": self.rotation.kind,
            "kl_dimension": len(self.kept),
            "directions_without_variance": without,
            "directions_collapsed": self.collapsed,
        }
        notes = []
        if without:
            notes.append(
                f"Left out are {without:,} of {len(self.kept):,} directions along which real latents do not vary (less "
                "than 1e-8 of the largest variance), where KL has no bound."
            )
        if self.collapsed:
            notes.append(f"Along {self.collapsed:,} directions the samples no longer vary, though real latents do.")
        if notes:
            provenance["notes"] = {"step_kl": " ".join(notes)}
        return Findings(curves=curves, provenance=provenance)

    def _beside_ideal(self, basis: LatentBasis) -> dict[str, Curve]:
        """Return the curves of a perfect denoiser, and what was measured in relation to them, by eigen-band."""
        kept, bands = self.kept, self.bands

        def perfect(path: IdealPath) -> Tensor:
            step, forward, ratio = path.step_kl(), path.forward_step_kl(), path.var_s / path.forward_var_s
            whole = [step[:, kept].mean(1), forward[:, kept].mean(1)]
            return torch.stack([*whole, *(value[:, band].mean(1) for value in (step, ratio) for band in bands)])

        found_ideal = self.trajectory.ideal(f"step_kl in {len(bands)} bands", perfect)
        ideal, width = (value.numpy() for value in found_ideal)

        curve = self.trajectory.curve_around
        found = {"step_kl_ideal": curve(ideal[0], width[0]), "step_kl_forward": curve(ideal[1], width[1])}
        measured = np.array([row["bands"] for row in self.rows])  # (S, bands, 2)
        for k, band in enumerate(bands):
            in_band, spread = ideal[2 + k], width[2 + k]
            value, error = measured[:, k].T
            half_width = np.hypot(NORMAL * error / in_band, value / in_band * spread / in_band)
            found[f"step_kl_ratio/band{k}"] = curve(value / in_band, half_width)
            found[f"variance_ratio/band{k}"] = curve(*self._variance_ratio(basis, k, band))
            found[f"variance_ratio_ideal/band{k}"] = curve(ideal[2 + len(bands) + k], width[2 + len(bands) + k])
        return found

    def _variance_ratio(self, basis: LatentBasis, k: int, band: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Variance of the samples ÷ that of real latents after each step, mean over the band, and its half-width; both
        (S,).
        """
        grid = self.trajectory.grid
        alpha, sigma = grid.alpha_s[:, None], grid.sigma_s[:, None]
        variance = torch.stack([row["variance"] for row in self.rows])[:, band]

        def ratio(sampled: Tensor, real: Tensor) -> Tensor:
            return (sampled / (alpha**2 * real[band] + sigma**2)).mean(-1)

        value = ratio(variance, basis.variance)
        sampled_without = torch.stack([row["variance_without"][k] for row in self.rows], dim=1)
        _, of_samples = jackknife(value, ratio(sampled_without, basis.variance))
        value, of_reference = basis.jackknife(lambda mean, real: ratio(variance, real))
        return value.numpy(), NORMAL * (of_samples**2 + of_reference**2).sqrt().numpy()
