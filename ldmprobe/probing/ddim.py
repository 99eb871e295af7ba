"""The DDIM probe: one set of trajectories from fixed noise, many analyses fed step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldmprobe.diffusion.schedule import SamplingGrid
from ldmprobe.diffusion.trajectory import DDIMStep, ddim_steps
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.analyses import (
    Analysis,
    Findings,
    MarginalGap,
    OneStepError,
    PCAScatter,
    SampleImages,
    StepKL,
    Trajectory,
    X0Drift,
)
from ldmprobe.probing.clipping import clipping, count_clipped
from ldmprobe.probing.guidance import check_guidance
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.probe import Progress, Ranks, evaluating, no_progress, sample_noise
from ldmprobe.probing.record import ProbeRecord, fingerprint
from ldmprobe.probing.reference import Reference, magnitude_quantiles


def probe_ddim(
    model: DiffusionModel,
    reference: Reference | None = None,
    num_samples: int = 256,
    num_steps: int = 50,
    timestep_spacing: str | None = None,
    guidance_scale: float = 1.0,
    batch_size: int = 256,
    seed: int = 0,
    analyses: Sequence[Analysis] | None = None,
    held_out: HeldOut | None = None,
    step: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = no_progress,
) -> ProbeRecord:
    """Sample ``num_samples`` latents by ``num_steps`` DDIM steps and feed each step to the analyses.

    Sample i starts from the same noise and has the same condition at every probe of a run, whatever the batch size or number
    of ranks.

    Args:
        model: what to probe.
        held_out: held-out latents, for analyses that look at single steps.
        reference: real latents; without it there is no ideal curve, and PCA is fitted on the final samples.
        num_samples: N, at least 8.
        num_steps: S, 1 to T.
        timestep_spacing: "leading", "trailing" or "linspace"; default: the scheduler's.
        guidance_scale: of classifier-free guidance; anything but 1 shifts the marginals by design, so that curves are no longer
            comparable with the ideal.
        batch_size: how many latents go through the network at once.
        analyses: default: StepKL, PCAScatter, X0Drift, SampleImages, and with a reference MarginalGap, with held-out latents
            OneStepError.
        step: optimiser steps taken so far.
        ranks: how the samples are shared out; default: one process.
        progress: called after each sampling step.

    Returns:
        A record called "ddim", the same on every rank.

    Raises:
        ConfigurationError: N or S out of range, or nothing to guide by, before anything is sampled.
    """
    if num_samples < 8:
        raise ConfigurationError(
            f"num_samples is {num_samples}; expected at least 8, so that a variance means something."
        )
    if batch_size < 1:
        raise ConfigurationError(f"batch_size is {batch_size}; expected at least 1.")
    if reference is not None and tuple(reference.basis.shape) != tuple(model.latent_shape):
        raise ConfigurationError(
            f"The reference was fitted on latents of shape {tuple(reference.basis.shape)}, the model's are {tuple(model.latent_shape)}; "
            "use the data and codec of this model."
        )
    grid = model.schedule.ddim_grid(num_steps, timestep_spacing)
    check_guidance(model, guidance_scale)
    ranks = ranks or Ranks()
    analyses = default_analyses(reference, held_out) if analyses is None else list(analyses)
    sample_ids = ranks.share(num_samples)
    found = Findings()
    clipped = torch.zeros(2, dtype=torch.float64, device=model.device)
    with evaluating(model.modules):
        trajectory = Trajectory(model, grid, sample_ids, num_samples, reference, ranks, held_out)
        for analysis in analyses:
            analysis.begin(trajectory)
        even_ids = ranks.even_share(num_samples)
        for even_step in sample_trajectory(model, even_ids, grid, guidance_scale, batch_size, seed):
            ddim_step = _first(len(sample_ids), even_step)
            for analysis in analyses:
                analysis.update(ddim_step)
            if grid.clip_range is not None and ddim_step.index == grid.num_steps - 1:
                clipped = ranks.all_reduce_sum(count_clipped(ddim_step.x0, grid.clip_range))
            progress(ddim_step.index + 1, grid.num_steps)
        for analysis in analyses:
            found.update(analysis.finish())
    provenance = {
        "num_samples": num_samples,
        "num_steps": num_steps,
        "timestep_spacing": timestep_spacing or model.schedule.scheduler.config.get("timestep_spacing", "leading"),
        "guidance_scale": guidance_scale,
        "seed": seed,
        "weights": model.weights,
        "latent_shape": list(model.latent_shape),
        "prediction_type": model.schedule.prediction_type,
        "reference_latents": reference.num_latents if reference else 0,
        **prompts_of(model),
        **clipping(model, grid.clip_range, clipped, _magnitudes(reference, held_out)),
        **found.provenance,
    }
    labels = _sample_labels(model, num_samples)
    if labels is not None:
        provenance["sample_labels"] = labels
    fingerprints = {
        "grid": grid_fingerprint(grid),
        "reference": reference.fingerprint if reference else "none",
        "codec": fingerprint(model.codec.description),
        "sampler": sampler_fingerprint(model, num_samples, guidance_scale, seed),
    }
    return ProbeRecord(
        "ddim",
        step,
        found.scalars,
        found.curves,
        found.scatters,
        images=found.images,
        provenance=provenance,
        fingerprints=fingerprints,
    )


def default_analyses(reference: Reference | None, held_out: HeldOut | None) -> list[Analysis]:
    """All analyses that can be made of what there is."""
    analyses: list[Analysis] = [StepKL(), PCAScatter(), X0Drift(), SampleImages()]
    if reference is not None:
        analyses.append(MarginalGap())
    if reference is not None and held_out is not None:
        analyses.append(OneStepError())
    return analyses


def sample_trajectory(
    model: DiffusionModel, sample_ids: Tensor, grid: SamplingGrid, guidance_scale: float, batch_size: int, seed: int
) -> Iterator[DDIMStep]:
    """DDIM steps of the samples numbered ``sample_ids`` (n,), each from its own noise and with its own condition; at most
    ``batch_size`` latents go through the network at once."""
    device = model.device
    condition = model.conditioning.for_samples(sample_ids.to(device))
    denoise = model.conditioned(condition, batch_size, guidance_scale)
    z_T = sample_noise(sample_ids.tolist(), model.latent_shape, seed).to(device)
    return ddim_steps(denoise, z_T, grid, model.schedule.prediction_type)


def grid_fingerprint(grid: SamplingGrid) -> str:
    """Return what tells one path through the noise levels from another, clipping included."""
    clips = [] if grid.clip_range is None else [grid.clip_range]
    return fingerprint(grid.timesteps, grid.alpha_t.float(), grid.alpha_s.float(), *clips)


def _magnitudes(reference: Reference | None, held_out: HeldOut | None) -> Tensor | None:
    """Return the quantiles of real latents' magnitudes, where there are real latents."""
    if reference is not None and len(reference.magnitudes):
        return reference.magnitudes
    return None if held_out is None else magnitude_quantiles(held_out.latents)


def _first(n: int, step: DDIMStep) -> DDIMStep:
    """The same step of the first ``n`` latents."""
    return replace(step, z_t=step.z_t[:n], z_s=step.z_s[:n], x0=step.x0[:n], epsilon=step.epsilon[:n])


def _sample_labels(model: DiffusionModel, num_samples: int) -> list[int] | None:
    if prompts_of(model):
        return None
    condition = model.conditioning.for_samples(torch.arange(num_samples))
    return condition["class_labels"].tolist() if "class_labels" in condition else None


def prompts_of(model: DiffusionModel) -> dict[str, Any]:
    """``{"prompts": […]}`` of a text-to-image model, for the provenance of a record; of another nothing."""
    return {name: value for name, value in model.conditioning.description.items() if name == "prompts"}


def sampler_fingerprint(model: DiffusionModel, num_samples: int, guidance_scale: float, seed: int) -> str:
    """Of what decides which samples are drawn, but for the noise levels and the weights."""
    described = model.conditioning.description
    parts = ["ddim", num_samples, guidance_scale, seed, list(model.latent_shape)]
    return fingerprint(*parts, *([described] if described else []))
