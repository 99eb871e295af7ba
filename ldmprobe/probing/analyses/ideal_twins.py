"""IdealTwins: the paper's two curves, as perfect denoisers of data that are not Gaussian show them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ldmprobe.diffusion.prediction import SamplePrediction
from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.metric import Metric
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.guidance import ClassifierFreeGuidance
from ldmprobe.models.ideal_denoisers import IdealDenoiser
from ldmprobe.probing.analyses.base import Analysis, Findings, Trajectory, analyzed
from ldmprobe.probing.analyses.marginal_gap import MarginalGap
from ldmprobe.probing.analyses.step_kl import StepKL
from ldmprobe.probing.ideals import answering, ideal_denoisers

_CURVES = ("step_kl", "marginal_gap")
_twin = partial(Metric, unit="nats per dimension", log=True, shown="record")


class IdealTwins(Analysis):
    """KL per pass and gap to real latents of the optimal denoisers of `ideal_denoisers`, sampled from the same noise by
    the same sampler on the same levels: what the network's curves would be if it were one of them, with the same
    finite-sample error. The closed-form ideal beside them is of Gaussian data, which real latents are not.

    They are sampled once for all probes with the same reference and sampling. There are none under guidance or from
    images, which move samples away from real latents by design, nor of a reference without its latents. Needs real
    latents.
    """

    metrics = (
        _twin(
            "step_kl_memorizer", "ideal: memorizer",
            "KL per pass of the optimal denoiser of the training latents themselves, all of whose samples are "
            "training latents.",
        ),
        _twin(
            "step_kl_mixture", "ideal: mixture of Gaussians",
            "KL per pass of the optimal denoiser of a mixture of Gaussians that was fitted to the training latents.",
        ),
        _twin(
            "marginal_gap_memorizer", "ideal: memorizer",
            "Gap of samples by the optimal denoiser of the training latents themselves.",
        ),
        _twin(
            "marginal_gap_mixture", "ideal: mixture of Gaussians",
            "Gap of samples by the optimal denoiser of a mixture of Gaussians that was fitted to the training latents.",
        ),
    )  # fmt: skip

    def begin(self, trajectory: Trajectory) -> None:
        if trajectory.reference is None:
            raise ConfigurationError("IdealTwins needs real latents to make ideals of; give the probe data.")
        self.trajectory = trajectory

    def update(self, step: SamplingStep) -> None:
        pass

    def finish(self) -> Findings:
        trajectory, reference = self.trajectory, self.trajectory.reference
        assert reference is not None
        sampling = trajectory.sampling
        if sampling.shifted_by:
            return Findings()
        found = Findings()
        # Answers of ε would leave x_0 open where α is 0, as at the start of rectified flow.
        table = answering(SamplePrediction(), trajectory.model.schedule)
        for name, denoiser in ideal_denoisers(reference, table).items():
            once = f"{name}, {sampling.num_samples} samples from seed {sampling.seed}, {sampling.start.provenance}"
            curves = trajectory.once(once, partial(self._curves_of, denoiser))
            for curve, value in zip(_CURVES, curves, strict=True):
                found.curves[f"{curve}_{name}"] = trajectory.curve(*value.numpy())
        return found

    def _curves_of(self, denoiser: IdealDenoiser) -> tuple[Tensor, ...]:
        """Return value, lower and upper end, (3, S), of each of the curves."""
        trajectory = self.trajectory
        network = denoiser.to(trajectory.model.device)
        model = DiffusionModel(network, denoiser.schedule, trajectory.model.latent_shape)
        sampling = replace(trajectory.sampling, guidance=ClassifierFreeGuidance())
        twin = replace(trajectory, model=model, sampling=sampling, held_out=None)
        findings = analyzed(twin, (StepKL(), MarginalGap()))
        kept = [findings.curves[name] for name in _CURVES]
        return tuple(torch.stack([torch.as_tensor(v) for v in (c.value, c.lower, c.upper)]) for c in kept)
