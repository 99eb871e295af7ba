"""The model card of an exported pipeline: what it is, how to use it, and what the probes have found, with figures."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from ldmprobe import __version__
from ldmprobe.io.record import ProbeRecord
from ldmprobe.models.conditioning import CardPart
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.latent_scale import in_digits
from ldmprobe.pretrained.lora import LoRAWeights
from ldmprobe.pretrained.source import Source
from ldmprobe.probing.judge import judge
from ldmprobe.tracking.charts.static import png
from ldmprobe.tracking.comparable import comparable
from ldmprobe.tracking.pictures import curves_figure, image_grid, scatter_figure
from ldmprobe.types import Component

CARD_RECORDS = 24  # of one probe, at most: curves of a figure
_SHOWN_PROMPTS = 10  # a row of the figure


def write_model_card(
    folder: Path,
    name: str,
    pipeline: Component,
    model: DiffusionModel,
    records: Sequence[ProbeRecord],
    base: Source | None = None,
    lora: LoRAWeights | None = None,
) -> None:
    """Write ``README.md`` and ``figures/*.png`` into a pipeline's folder, or that of its LoRA.

    Args:
        name: what the pipeline is called.
        pipeline: as ``as_pipeline`` has made it of ``model``.
        records: of the run that ``model`` is from, in order of training step; those of later steps than its own are
            left out.
        base: what it was finetuned from, if it was.
        lora: what the folder holds besides a scheduler, if no whole pipeline, to be loaded into that of ``base``.
    """
    shown = [record for record in records if model.trained_steps is None or record.step <= model.trained_steps]
    by_probe = {
        probe: comparable([r for r in shown if r.probe == probe]) for probe in dict.fromkeys(r.probe for r in shown)
    }
    # Of several sampling probes the paper's, by DDIM, or else the first.
    sampling = [name for name, of in by_probe.items() if "step_kl" in of[-1].curves or of[-1].images or of[-1].scatters]
    sampled = sorted(sampling, key="ddim".__ne__)
    denoising, quality, strength = (by_probe.get(probe, []) for probe in ("denoising", "quality", "lora_strength"))
    figures = _figures(by_probe[sampled[0]] if sampled else [], denoising)
    for file, (_, content) in figures.items():
        (folder / "figures").mkdir(exist_ok=True)
        (folder / "figures" / file).write_bytes(content)
    found = _found(shown, denoising, quality, strength) + [
        f"![{caption}](figures/{file})\n\n*{caption}*\n" for file, (caption, _) in figures.items()
    ]
    if found and model.weights not in ("raw", "ema"):
        found.insert(0, f"These were found of the weights as trained. What is here is another: {model.weights}.\n")
    measured = ["## What its probes found\n", *found] if found else []
    conditioning = model.conditioning.card(pipeline, model.latent_shape)
    facts = _facts(pipeline, model, conditioning) + ([("LoRA", _described(lora))] if lora else [])
    call = conditioning.call + conditioning.size
    use = _use_lora(name, base, pipeline, call) if base and lora else _use(name, pipeline, call)
    text = "\n".join([_header(name, pipeline, conditioning.task, base, lora), table(facts), use, *measured])
    (folder / "README.md").write_text(text, encoding="utf-8")


def _header(name: str, pipeline: Component, task: str, base: Source | None, lora: LoRAWeights | None) -> str:
    class_name = type(pipeline).__name__
    relation = (
        f"base_model: {base.name}\nbase_model_relation: {'adapter' if lora else 'finetune'}\n"
        if base and _on_hub(base)
        else ""
    )
    what = f"LoRA weights for a {class_name} of diffusers, " if lora else f"A {class_name} of diffusers, "
    origin = f"finetuned from {base.name if _on_hub(base) else Path(base.name).name}" if base else "trained"
    license = " The license of what it was finetuned from holds for it, too." if base else ""
    return f"""---
library_name: diffusers
pipeline_tag: {task}
{relation}tags:
- {"lora" if lora else f"diffusers:{class_name}"}
- ldmprobe
---

# {name}

{what}{origin} and exported with ldmprobe {__version__}.{license}
"""


def _on_hub(base: Source) -> bool:
    """Else it has the path of a machine that the card's reader does not know."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", base.name) is not None and not Path(base.name).exists()


def _facts(pipeline: Component, model: DiffusionModel, conditioning: CardPart) -> list[tuple[str, str]]:
    network, schedule = model.network, model.schedule
    averaged = averaged_in_words(model.weights)
    steps = f"{model.trained_steps:,}" if model.trained_steps is not None else "not known"
    noise = f"{schedule.num_timesteps:,} timesteps, log-SNR {schedule.log_snr[0]:.2f} to {schedule.log_snr[-1]:.2f}"
    facts = [
        ("Network", size_of(network)),
        ("Training steps", steps + averaged),
        ("Noise schedule", f"{noise}, predicts {schedule.prediction.name}"),
        ("Scheduler", type(pipeline.scheduler).__name__),
        _space(pipeline, model),
    ]
    return [*facts, *conditioning.facts]


def averaged_in_words(weights: str) -> str:
    """Return the end of a phrase that says which weights a model has."""
    return {"raw": "", "ema": ", exponential moving average of the weights"}.get(weights, f", {weights}")


def size_of(module: nn.Module) -> str:
    """Return class and number of parameters, in words."""
    return f"{type(module).__name__}, {sum(parameter.numel() for parameter in module.parameters()):,} parameters"


def _space(pipeline: Component, model: DiffusionModel) -> tuple[str, str]:
    codec, shape = model.codec, " × ".join(map(str, model.latent_shape))
    if codec.autoencoder is None:
        does_nothing = "; the autoencoder does nothing, diffusers asks for one" if "vae" in pipeline.components else ""
        return "Images", f"{shape}, in pixel space{does_nothing}"
    latents = f"{shape} of {type(codec.autoencoder).__name__}, scaled by {in_digits(codec.scale, '.5g')}"
    if bool((codec.shift != 0).any()):
        autoencoder = pipeline.components.get("vae", pipeline.components.get("vqvae"))
        latents += f", shifted by {in_digits(codec.shift, '.5g')}"
        if not any(autoencoder.config.get(name) for name in ("shift_factor", "latents_mean")):
            latents += "; the shift is in the autoencoder's weights, and its `shift_factor` therefore 0"
    return "Latents", latents


def _described(lora: LoRAWeights) -> str:
    return "; ".join(
        f"{name}: rank {lora.configs[name]['r']}, α {lora.configs[name]['lora_alpha']}, "
        f"{sum(weight.numel() for weight in weights.values()):,} parameters"
        for name, weights in lora.layers.items()
    )


def _use(name: str, pipeline: Component, call: str) -> str:
    return f"""
```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{name}"{_without(pipeline)})
images = pipeline({call}, num_inference_steps=50).images
```
"""


def _without(pipeline: Component) -> str:
    """Return what diffusers has to be told that the pipeline does without, such as Stable Diffusion 3's T5."""
    absent = [name for name, part in pipeline.components.items() if part is None]
    return "".join(f", {name}=None" for name in absent if name not in pipeline._optional_components)


def _use_lora(name: str, base: Source, pipeline: Component, call: str) -> str:
    """Return code that takes the scheduler beside the LoRA, since the base's own may be of another noise schedule, or
    take other steps.
    """
    scheduler, first = type(pipeline.scheduler).__name__, ""
    settings = {key: value for key in ("revision", "variant") if (value := vars(base)[key])}
    name_here = base.name if _on_hub(base) else f"path/to/{Path(base.name).name}"
    source = ", ".join([f'"{name_here}"', *(f'{key}="{value}"' for key, value in settings.items())])
    if base.name.endswith(".ckpt"):
        source = '"base"'
        first = f"\nThe base first has to be a pipeline, too: `ldmprobe export {name_here} base --merge`.\n"
    elif not _on_hub(base):
        first = f"\n`{name_here}` stands for the pipeline that it was finetuned from; write where you have it.\n"
    return f"""{first}
```python
from diffusers import {", ".join(sorted([scheduler, "DiffusionPipeline"], key=str.lower))}

pipeline = DiffusionPipeline.from_pretrained({source}{_without(pipeline)})
pipeline.scheduler = {scheduler}.from_pretrained("{name}", subfolder="scheduler")
pipeline.load_lora_weights("{name}")
images = pipeline({call}, num_inference_steps=50).images
```
"""


def _found(
    records: Sequence[ProbeRecord],
    denoising: Sequence[ProbeRecord],
    quality: Sequence[ProbeRecord],
    strength: Sequence[ProbeRecord],
) -> list[str]:
    """Return the verdict and the main numbers, each with the training step it was measured at."""
    parts, rows = [], []
    if denoising:
        last = denoising[-1]
        verdict = judge(records)
        parts.append(f"**{verdict.state.symbol} {verdict.state.value}** {escape(verdict.sentence, quote=False)}\n")
        bound = last.scalars.get("denoising_bound_nats", float("nan"))
        rows.append(("Held-out likelihood bound", f"{bound:.2f} nats, less is better (step {last.step:,})"))
        skill = last.curves.get("denoising_skill")
        if skill is not None and np.isfinite(skill.value).any():
            k = int(np.nanargmin(skill.value))
            level = f"log-SNR {skill.log_snr[k]:.1f} (step {last.step:,})"
            rows.append(("Lowest denoising skill", f"{skill.value[k]:.3f}, at {level}; 0 is a linear denoiser"))
    if quality:
        last = quality[-1]
        known = {key: escape(str(value), quote=False) for key, value in last.provenance.items()}
        of = f"{known.get('num_samples')} samples, {known.get('feature_network')} (step {last.step:,})"
        rows += [
            (metric.upper(), f"{last.scalars[metric]:.4g}, {of}") for metric in ("fid", "kid") if metric in last.scalars
        ]
    if strength:
        last = strength[-1]
        best, lower, upper = (last.scalars[f"lora_strength_best{end}"] for end in ("", "/lower", "/upper"))
        where = f"where most nats are gained less those forgotten (step {last.step:,}); samples may say otherwise"
        rows.append(("Best LoRA strength by the bound", f"{best:.2f} (95 %: {lower:.2f} to {upper:.2f}), {where}"))
    return [*parts, table(rows)] if rows else parts


def _figures(ddim: Sequence[ProbeRecord], denoising: Sequence[ProbeRecord]) -> dict[str, tuple[str, bytes]]:
    """Return caption and PNG of each figure, by file name."""
    figures: dict[str, tuple[str, bytes]] = {}
    if ddim and ddim[-1].images.get("samples"):
        grid = io.BytesIO()
        Image.fromarray(image_grid(ddim[-1].images["samples"])).save(grid, "PNG")
        figures["samples.png"] = (_of_samples(ddim[-1]), grid.getvalue())
    if curves := [record for record in ddim if "step_kl" in record.curves]:
        caption = "KL of the latents before and after each denoiser pass; a perfect model lies on the dashed line"
        figures["step_kl.png"] = (caption, png(curves_figure(curves, ["step_kl"])))
    if skills := [record for record in denoising if "denoising_skill" in record.curves]:
        caption = "Denoising skill on held-out data by noise level: 0 is the best linear denoiser, below is worse"
        figures["denoising_skill.png"] = (caption, png(curves_figure(skills, ["denoising_skill"])))
    if ddim and ddim[-1].scatters.get("pca"):
        caption = "Latents during sampling, on two principal components"
        figures["pca.png"] = (caption, png(scatter_figure(ddim[-1], "pca")))
    return figures


def _of_samples(record: ProbeRecord) -> str:
    """Prompts are code, so that nothing in them is taken for Markdown."""
    provenance = record.provenance
    told = [" ".join(str(prompt).replace("`", "'").split()) for prompt in provenance.get("prompts", [])]
    shown = ", ".join(f"`{prompt}`" if prompt else "no prompt" for prompt in told[:_SHOWN_PROMPTS])
    more = " and others" if len(told) > _SHOWN_PROMPTS else ""
    prompts = f" of {shown}{more}{' in turn' if len(told) > 1 else ''}" if told else ""
    conditional = "prompts" in provenance or "sample_labels" in provenance
    guidance = f", {provenance.get('guidance')}" if conditional else ""
    return f"Samples{prompts}{guidance} (step {record.step:,})"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return a Markdown table of names and values."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""])
