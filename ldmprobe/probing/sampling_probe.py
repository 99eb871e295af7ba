"""The sampling probe: one set of trajectories from fixed noise, by any sampler, many analyses fed step by step."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldmprobe.diffusion.samplers import Sampler
from ldmprobe.diffusion.trajectory import SamplingStep
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses import (
    Analysis,
    Exposure,
    IdealTwins,
    MarginalGap,
    OneStepError,
    PCAScatter,
    SampleImages,
    StepKL,
    Trajectory,
    X0Drift,
)
from ldmprobe.probing.analyses.base import analyzed
from ldmprobe.probing.clipping import clipping, count_clipped
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics, magnitude_quantiles
from ldmprobe.probing.probe import Progress, Ranks, evaluating, no_progress
from ldmprobe.probing.sampling import Sampling, prompts_of
from ldmprobe.types import PlainValues

METRICS = (
    Metric(
        "passes", "Network passes",
        "How often the sampler has asked the network by the end of each step.", "passes", shown="record",
    ),
)  # fmt: skip


def probe_sampling(
    model: DiffusionModel,
    reference: LatentStatistics | None = None,
    sampling: Sampling | None = None,
    analyses: Sequence[Analysis] | None = None,
    held_out: HeldOut | None = None,
    step: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
    name: str | None = None,
) -> ProbeRecord:
    """Sample latents, by DDIM if no other sampler is named, and feed each step to the analyses.

    Sample i starts from the same noise and has the same condition at every probe of a run, whatever the batch size or
    number of ranks.

    Args:
        model: what to probe.
        reference: real latents; without it there is no ideal curve, and PCA is fitted on the final samples.
        sampling: how to sample; at least 8 samples. Guidance shifts the marginals by design, so that there is no
            ideal.
        analyses: default: StepKL, PCAScatter, X0Drift, SampleImages, and with a reference MarginalGap and IdealTwins,
            with held-out latents OneStepError and Exposure.
        held_out: held-out latents, for analyses that look at single steps.
        step: optimizer steps taken so far.
        ranks: how the samples are shared out; default: one process.
        progress: called after each sampling step.
        name: of the record; default: the sampler's, such as "ddim".

    Returns:
        A record, the same on every rank.

    Raises:
        ConfigurationError: N or S out of range, or nothing to guide by, before anything is sampled.
    """
    sampling = sampling or Sampling()
    num_samples = sampling.num_samples
    if num_samples < 8:
        raise ConfigurationError(
            f"num_samples is {num_samples}; expected at least 8, so that a variance means something."
        )
    if reference is not None and tuple(reference.basis.shape) != tuple(model.latent_shape):
        raise ConfigurationError(
            f"The reference was fitted on latents of shape {tuple(reference.basis.shape)}, the model's are "
            f"{tuple(model.latent_shape)}; use the data and codec of this model."
        )
    grid = sampling.levels(model, real=reference is not None)
    if reference is not None:
        sampling = sampling.fitted(grid, reference.basis)
    ranks = ranks or Ranks()
    analyses = default_analyses(reference, held_out) if analyses is None else list(analyses)
    program = sampling.sampler.program(grid)
    clipped = torch.zeros(2, dtype=torch.float64, device=model.device)
    with evaluating(model.modules):
        trajectory = Trajectory(model, sampling, grid, ranks.share(num_samples), reference, ranks, held_out)

        def seen(sampling_step: SamplingStep) -> None:
            nonlocal clipped
            if grid.clip_range is not None and sampling_step.index == grid.num_steps - 1:
                clipped = ranks.all_reduce_sum(count_clipped(sampling_step.x0, grid.clip_range))
            progress(sampling_step.index + 1, grid.num_steps)

        found = analyzed(trajectory, analyses, seen)
    found.curves["passes"] = trajectory.curve(np.cumsum([float(step.passes) for step in program]))
    clips = clipping(model, grid.clip_range, clipped, _magnitudes(reference, held_out))
    guided, bent, unlike = "", "", ""
    if sampling.shifted_by:
        guided = f"{sampling.shifted_by} shifts the marginals by design, so that there are no ideal curves"
    if reference is not None and grid.clip_range is not None:
        bent = (
            f"there are no closed-form ideal curves, since a sampler that clips x̂_0, here to ±{grid.clip_range:g}, is "
            "not affine"
        )
    if held_out is not None and held_out.condition:
        unlike = model.conditioning.unlike(held_out.condition)
    provenance = {
        **sampling.provenance(model),
        "reference_latents": reference.num_latents if reference else 0,
        **clips,
        **found.provenance,
        "caveats": [caveat for caveat in (guided, clips.get("clipping"), bent, unlike) if caveat],
        **_sample_labels(model, num_samples),
    }
    return ProbeRecord(
        name or record_name(sampling.sampler),
        step,
        found.scalars,
        found.curves,
        found.scatters,
        images=found.images,
        metrics=(*(metric for analysis in analyses for metric in analysis.metrics), *METRICS),
        provenance=provenance,
        fingerprints={
            **sampling.fingerprints(model, grid),
            "reference": reference.fingerprint if reference else "none",
        },
    )


def record_name(sampler: Sampler) -> str:
    """Return what a record of samples by ``sampler`` is called: "ddim", or "dpmpp_2m"."""
    return re.sub(r"[^a-z0-9_]+", "_", sampler.in_words.lower()).strip("_")[:64]


def default_analyses(reference: LatentStatistics | None, held_out: HeldOut | None) -> list[Analysis]:
    """Return all analyses that can be made of what there is."""
    analyses: list[Analysis] = [StepKL(), PCAScatter(), X0Drift(), SampleImages()]
    if reference is not None:
        analyses += [MarginalGap(), IdealTwins()]
    if reference is not None and held_out is not None:
        analyses += [OneStepError(), Exposure()]
    return analyses


def _magnitudes(reference: LatentStatistics | None, held_out: HeldOut | None) -> Tensor | None:
    """Return the quantiles of real latents' magnitudes, where there are real latents."""
    if reference is not None and len(reference.magnitudes):
        return reference.magnitudes
    return None if held_out is None else magnitude_quantiles(held_out.latents)


def _sample_labels(model: DiffusionModel, num_samples: int) -> PlainValues:
    if prompts_of(model) or not model.conditioning.tells_classes:
        return {}
    condition = model.conditioning.for_samples(torch.arange(num_samples))
    return {"sample_labels": condition["class_labels"].tolist()} if "class_labels" in condition else {}
