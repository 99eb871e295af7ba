"""A DiffusionModel put together as a diffusers pipeline: the inverse of :func:`~ldmprobe.models.pretrained.load_pipeline`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import ClassConditioning, Unconditional
from ldmprobe.models.diffusion_model import DiffusionModel

_DIT_NULL_CLASS = 1000  # fixed in DiTPipeline.__call__, whatever the network's number of classes
_EXPORTABLE = (
    "Those it has: UNet2DModel without classes in pixel space (DDIMPipeline; DDPMPipeline for flow matching) or on the latents of an "
    "autoencoder (LDMPipeline), and DiTTransformer2DModel with classes on such latents (DiTPipeline). The parts of any other can be "
    "saved one by one from Python: `ldmprobe.standalone.load_model(CHECKPOINT)` has `network`, `codec.autoencoder` and "
    "`schedule.scheduler`, each with diffusers' `save_pretrained`; its latents are (encoder(x) − codec.shift) · codec.scale."
)


@torch.no_grad()
def as_pipeline(model: DiffusionModel) -> Any:
    """The DDIMPipeline, DDPMPipeline, LDMPipeline or DiTPipeline that samples as ``model`` does; ``model`` stays as it is.

    ==============================================  ============  =====================================================
    model                                           pipeline      its scheduler
    ==============================================  ============  =====================================================
    UNet2DModel, pixels                             DDIMPipeline  DDIMScheduler with the model's schedule
    UNet2DModel, pixels, flow matching              DDPMPipeline  the model's own
    UNet2DModel, latents of an autoencoder          LDMPipeline   DDIMScheduler
    DiTTransformer2DModel, classes, latents         DiTPipeline   DDIMScheduler
    ==============================================  ============  =====================================================

    These pipelines know a latent scale, which goes into the autoencoder's ``scaling_factor``, but no shift, which goes into its
    weights. DiTPipeline takes class 1,000 for the null class: a DiT of fewer classes is padded with it up to there, and ``id2label``
    says how many there are.

    Raises:
        ConfigurationError: diffusers has no pipeline that would give the same images.
    """
    import diffusers

    family = _family(model)
    _check_shape(model, family)
    network: Any = copy.deepcopy(model.network).eval()
    height, width = model.latent_shape[1:]
    network.register_to_config(sample_size=height if height == width else (height, width))
    flow = model.schedule.prediction_type == "flow"
    parts = {"scheduler": model.schedule.scheduler if flow else _ddim_scheduler(model.schedule)}
    if family == "LDMPipeline":
        parts["vqvae"] = _autoencoder(model.codec)
    if family != "DiTPipeline":
        return getattr(diffusers, family)(unet=network, **parts)
    labels = {str(label): str(label) for label in range(network.config.num_embeds_ada_norm)}
    with_num_classes(network, _DIT_NULL_CLASS)
    pipeline = diffusers.DiTPipeline(transformer=network, vae=_autoencoder(model.codec), id2label=labels, **parts)
    pipeline.register_to_config(id2label=labels)
    return pipeline


def with_num_classes(transformer: Any, num_classes: int) -> None:
    """Give a DiT another number of classes, in place: those beyond are dropped, those that it lacks become the null class, the last
    row of each table of embeddings."""
    from diffusers.models.embeddings import LabelEmbedding

    for module in transformer.modules():
        if isinstance(module, LabelEmbedding):
            rows = module.embedding_table.weight.detach()
            kept, null = rows[:-1][:num_classes], rows[-1:]
            rows = torch.cat([kept, null.expand(num_classes + 1 - len(kept), -1)])
            module.embedding_table = nn.Embedding.from_pretrained(rows, freeze=False)
            module.num_classes = num_classes
    transformer.register_to_config(num_embeds_ada_norm=num_classes)


def _family(model: DiffusionModel) -> str:
    network, conditioning = type(model.network).__name__, model.conditioning
    flow, latents = model.schedule.prediction_type == "flow", model.codec.autoencoder is not None
    if network == "UNet2DModel" and isinstance(conditioning, Unconditional):
        if not latents:
            return "DDPMPipeline" if flow else "DDIMPipeline"
        if not flow:
            return "LDMPipeline"
    if network == "DiTTransformer2DModel" and isinstance(conditioning, ClassConditioning) and latents and not flow:
        return "DiTPipeline"
    what = f"a {network} with {type(conditioning).__name__} in {'latent' if latents else 'pixel'} space"
    raise ConfigurationError(
        f"diffusers has no pipeline for {what}{' and flow matching' if flow else ''}. {_EXPORTABLE}"
    )


def _check_shape(model: DiffusionModel, family: str) -> None:
    """Refuse what the pipeline would sample in another shape, scale or class."""
    codec, (_, height, width) = model.codec, model.latent_shape
    if codec.autoencoder is None and (float(codec.scale), float(codec.shift)) != (1.0, 0.0):
        raise ConfigurationError(
            f"The pixels are scaled by {float(codec.scale):.4g} and shifted by {float(codec.shift):.4g} (`scale` of the codec), which a "
            f"{family} cannot undo; train with a LatentCodec of `scale: 1.0`, or none, to export."
        )
    if height != width and family in ("LDMPipeline", "DiTPipeline"):
        raise ConfigurationError(f"The latents are {height}×{width}; a {family} samples square ones only.")
    if family != "DiTPipeline":
        return
    config: Any = model.network.config
    if config.sample_size != height:
        raise ConfigurationError(
            f"The DiTTransformer2DModel has sample_size {config.sample_size} and was trained on latents of {height}×{width}; a "
            "DiTPipeline samples in the former."
        )
    if config.num_embeds_ada_norm > _DIT_NULL_CLASS:
        raise ConfigurationError(
            f"The model has {config.num_embeds_ada_norm:,} classes; a DiTPipeline takes class {_DIT_NULL_CLASS} for the null class, "
            f"so that at most {_DIT_NULL_CLASS:,} export."
        )


def _ddim_scheduler(schedule: NoiseSchedule) -> Any:
    """The DDIMScheduler whose steps are those of ``schedule.ddim_grid``."""
    from diffusers import DDIMScheduler

    name, config = type(schedule.scheduler).__name__, schedule.scheduler.config
    # Given one by one: from_config would put DDIM's own defaults in the place of another class's.
    settings = {
        "timestep_spacing": config.get("timestep_spacing", "leading"),
        "clip_sample": config.get("clip_sample", False),
    }
    try:
        scheduler = DDIMScheduler.from_config(config, **settings)
        same = torch.allclose(scheduler.alphas_cumprod.double(), schedule.alpha**2, rtol=1e-5, atol=1e-7)
    except (NotImplementedError, ValueError, RuntimeError):
        same = False
    if not same:
        raise ConfigurationError(
            f"The noise schedule of this {name} is none that a DDIMScheduler can have; use one that is."
        )
    return scheduler


def _autoencoder(codec: LatentCodec) -> Any:
    """A copy of the codec's autoencoder that has its scale in the config and its shift in the weights."""
    autoencoder = copy.deepcopy(codec.autoencoder)
    if float(codec.shift) != 0:
        _fold_shift(autoencoder, float(codec.shift))
    autoencoder.register_to_config(scaling_factor=float(codec.scale))
    if "shift_factor" in autoencoder.config:
        autoencoder.register_to_config(shift_factor=0.0)
    return autoencoder


def _fold_shift(autoencoder: Any, shift: float) -> None:
    """Make an autoencoder's latents z − ``shift``: its pointwise convolutions, which no padding touches, take the shift exactly."""
    name, config = type(autoencoder).__name__, autoencoder.config
    if name == "AutoencoderTiny" or config.get("norm_type") == "spatial":
        raise ConfigurationError(
            f"The latents of this {name} are shifted by {shift:.4g}, which diffusers' pipelines do not undo and which its weights cannot "
            "take; train with a number as the codec's `scale` to export."
        )
    if name == "AutoencoderKL":
        _add_pointwise(autoencoder, "quant_conv", 2 * config.latent_channels)
        _add_pointwise(autoencoder, "post_quant_conv", config.latent_channels)
    else:
        autoencoder.quantize.embedding.weight -= shift
    decoding = autoencoder.post_quant_conv
    autoencoder.quant_conv.bias[: decoding.in_channels] -= (
        shift  # the rest of AutoencoderKL's is the posterior's log-variance
    )
    decoding.bias += shift * decoding.weight.sum((1, 2, 3))


def _add_pointwise(autoencoder: Any, name: str, channels: int) -> None:
    """An identity where the autoencoder does without this convolution."""
    if getattr(autoencoder, name) is not None:
        return
    identity = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(identity.weight)
    nn.init.zeros_(identity.bias)  # type: ignore[arg-type]
    setattr(autoencoder, name, identity)
    autoencoder.register_to_config(**{f"use_{name}": True})
