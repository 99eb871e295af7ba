"""The model card of an exported pipeline: what it is, how to use it, and what the probes have found, with figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ldmprobe import __version__
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.record import ProbeRecord
from ldmprobe.tracking.comparable import comparable
from ldmprobe.tracking.figures import figure_png, kl_figure, pca_figure, samples_figure, skill_figure


def write_model_card(
    folder: Path, name: str, pipeline: Any, model: DiffusionModel, records: Sequence[ProbeRecord]
) -> None:
    """Write ``README.md`` and ``figures/*.png`` into a pipeline's folder.

    Args:
        name: what the pipeline is called.
        pipeline: as :func:`~ldmprobe.models.pipeline.as_pipeline` has made it of ``model``.
        records: of the run that ``model`` is from, in order of training step; those of later steps than its own are left out.
    """
    shown = [record for record in records if model.trained_steps is None or record.step <= model.trained_steps]
    by_probe = {probe: comparable([r for r in shown if r.probe == probe]) for probe in ("ddim", "denoising", "quality")}
    figures = _figures(by_probe["ddim"], by_probe["denoising"])
    for file, (_, png) in figures.items():
        (folder / "figures").mkdir(exist_ok=True)
        (folder / "figures" / file).write_bytes(png)
    found = _found(by_probe["denoising"], by_probe["quality"]) + [
        f"![{caption}](figures/{file})\n\n*{caption}*\n" for file, (caption, _) in figures.items()
    ]
    measured = ["## What its probes found\n", *found] if found else []
    text = "\n".join([_header(name, pipeline), _table(_facts(pipeline, model)), _use(name, pipeline), *measured])
    (folder / "README.md").write_text(text, encoding="utf-8")


def _header(name: str, pipeline: Any) -> str:
    return f"""---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- diffusers:{type(pipeline).__name__}
- ldmprobe
---

# {name}

A {type(pipeline).__name__} of diffusers, trained and exported with ldmprobe {__version__}.
"""


def _facts(pipeline: Any, model: DiffusionModel) -> list[tuple[str, str]]:
    network, schedule, codec = model.network, model.schedule, model.codec
    parameters = sum(parameter.numel() for parameter in network.parameters())
    averaged = ", exponential moving average of the weights" if model.weights == "ema" else ""
    shape = " × ".join(map(str, model.latent_shape))
    steps = f"{model.trained_steps:,}" if model.trained_steps is not None else "not known"
    noise = f"{schedule.num_timesteps:,} timesteps, log-SNR {schedule.log_snr[0]:.2f} to {schedule.log_snr[-1]:.2f}"
    facts = [
        ("Network", f"{type(network).__name__}, {parameters:,} parameters"),
        ("Training steps", steps + averaged),
        ("Noise schedule", f"{noise}, predicts {schedule.prediction_type}"),
        ("Scheduler", type(pipeline.scheduler).__name__),
    ]
    if codec.autoencoder is None:
        return [*facts, ("Images", f"{shape}, in pixel space")]
    latents = f"{shape} of {type(codec.autoencoder).__name__}, scaled by {float(codec.scale):.5g}"
    if float(codec.shift) != 0:
        latents += f"; their shift, {float(codec.shift):.5g}, is in the autoencoder's weights, and its `shift_factor` therefore 0"
    facts.append(("Latents", latents))
    if hasattr(pipeline, "labels"):
        facts.append(("Classes", f"{len(pipeline.labels):,}; every other up to 1,000 is the null class"))
    return facts


def _use(name: str, pipeline: Any) -> str:
    what = "class_labels=[0, 1], guidance_scale=1.0" if hasattr(pipeline, "labels") else "batch_size=4"
    return f"""
```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{name}")
images = pipeline({what}, num_inference_steps=50).images
```
"""


def _found(denoising: Sequence[ProbeRecord], quality: Sequence[ProbeRecord]) -> list[str]:
    """The summary sentence and the main numbers, each with the training step it was measured at."""
    parts, rows = [], []
    if denoising:
        last = denoising[-1]
        if sentence := str(last.provenance.get("summary", "")):
            parts.append(f"{escape(sentence[:1].upper() + sentence[1:], quote=False)}\n")
        bound = last.scalars.get("denoising_bound_nats", float("nan"))
        rows.append(("Held-out likelihood bound", f"{bound:.2f} nats, less is better (step {last.step:,})"))
        skill = last.curves.get("denoising_skill")
        if skill is not None and np.isfinite(skill.value).any():
            k = int(np.nanargmin(skill.value))
            level = f"log-SNR {skill.log_snr[k]:.1f}"
            rows.append(
                (
                    "Lowest denoising skill",
                    f"{skill.value[k]:.3f}, at {level} (step {last.step:,}); 0 is a linear denoiser",
                )
            )
    if quality:
        last = quality[-1]
        known = {key: escape(str(value), quote=False) for key, value in last.provenance.items()}
        of = f"{known.get('num_samples')} samples, {known.get('feature_network')} (step {last.step:,})"
        rows += [
            (metric.upper(), f"{last.scalars[metric]:.4g}, {of}") for metric in ("fid", "kid") if metric in last.scalars
        ]
    return [*parts, _table(rows)] if rows else parts


def _figures(ddim: Sequence[ProbeRecord], denoising: Sequence[ProbeRecord]) -> dict[str, tuple[str, bytes]]:
    """By file name: caption and PNG."""
    figures: dict[str, tuple[str, Any]] = {}
    if ddim and ddim[-1].images.get("samples"):
        figures["samples.png"] = ("Samples", samples_figure(ddim[-1]))
    if curves := [record for record in ddim if "step_kl" in record.curves]:
        caption = "KL of the latents before and after each denoiser pass; a perfect model lies on the dashed line"
        figures["step_kl.png"] = (caption, kl_figure(curves))
    if skills := [record for record in denoising if "denoising_skill" in record.curves]:
        caption = "Denoising skill on held-out data by noise level: 0 is the best linear denoiser, below is worse"
        figures["denoising_skill.png"] = (caption, skill_figure(skills))
    if ddim and ddim[-1].scatters.get("pca"):
        figures["pca.png"] = ("Latents during sampling, on two principal components", pca_figure(ddim[-1]))
    return {file: (caption, figure_png(figure)) for file, (caption, figure) in figures.items()}


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""])
