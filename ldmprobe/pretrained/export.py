"""A DiffusionModel put together as a diffusers pipeline: the inverse of :func:`~ldmprobe.pretrained.load.load_pipeline`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.codec import SCALING, in_digits
from ldmprobe.models.conditioning import ClassConditioning, Unconditional
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.families import FAMILIES
from ldmprobe.models.text import TextConditioning, TextEncoder
from ldmprobe.pretrained.pixel_autoencoder import pixel_autoencoder

_DIT_NULL_CLASS = 1000  # fixed in DiTPipeline.__call__, whatever the network's number of classes
_XL_CHANNELS = (
    4  # fixed in StableDiffusionXLPipeline.__call__, where it reads the mean and standard deviation of its latents
)
_EXPORTABLE = (
    "Those it has: UNet2DModel without classes in pixel space (DDIMPipeline; DDPMPipeline for flow matching) or on the latents of an "
    "autoencoder (LDMPipeline), DiTTransformer2DModel with classes (DiTPipeline), and with text the network that the text encoder's "
    "own pipeline has, such as UNet2DConditionModel for SmallCLIP (StableDiffusionPipeline). The parts of any other can be "
    "saved one by one from Python: `ldmprobe.load_model(CHECKPOINT)` has `network`, `codec.autoencoder` and "
    "`schedule.scheduler`, each with diffusers' `save_pretrained`; its latents are (encoder(x) − codec.shift) · codec.scale."
)
_STABLE_DIFFUSION_SETS = {"steps_offset": 1, "clip_sample": False}  # in any scheduler, in __init__


@torch.no_grad()
def as_pipeline(model: DiffusionModel) -> Any:
    """The diffusers pipeline that samples as ``model`` does; ``model`` stays as it is.

    ==============================================  =============================  =========================================
    model                                           pipeline                       its scheduler
    ==============================================  =============================  =========================================
    UNet2DModel, pixels                             DDIMPipeline                   DDIMScheduler with the model's schedule
    UNet2DModel, pixels, flow matching              DDPMPipeline                   the model's own
    UNet2DModel, latents of an autoencoder          LDMPipeline                    DDIMScheduler
    DiTTransformer2DModel, classes                  DiTPipeline                    DDIMScheduler
    text, the network of the encoder's pipeline     the text encoder's             DDIMScheduler; the model's own for flow matching
    ==============================================  =============================  =========================================

    These pipelines know a latent scale, which goes into the autoencoder's ``scaling_factor``; Stable Diffusion 3's knows a shift, too, and
    XL's both by channel, if there are four; for any other they go into the autoencoder's weights. In pixel space a pipeline that cannot do without an autoencoder has one that
    does nothing. DiTPipeline takes class 1,000 for the null class: a DiT of fewer classes is padded with it up to there, and
    ``id2label`` says how many there are.

    Raises:
        ConfigurationError: diffusers has no pipeline that would give the same images.
    """
    import diffusers

    name = _class_name(model)
    family = FAMILIES[name]
    _check_shape(model, name)
    network: Any = copy.deepcopy(model.network).eval()
    height, width = model.latent_shape[1:]
    if family.network == "unet":  # what a transformer was built for stays: others it is told in the call
        network.register_to_config(sample_size=height if height == width else (height, width))
    parts = {family.network: network, "scheduler": _scheduler(model.schedule, name)}
    if family.autoencoder:
        parts[family.autoencoder] = _autoencoder(model, family.scaling)
    for part in parts.values():
        if part.config.get("_name_or_path"):  # the folder here that it was read from, which diffusers writes down
            part.register_to_config(_name_or_path="")
    if isinstance(model.conditioning, TextConditioning):
        pipeline = _with_text(model.conditioning.encoder, parts)
        _check_image_size(pipeline, model)
        return pipeline
    if name != "DiTPipeline":
        return getattr(diffusers, name)(**parts)
    labels = {str(label): str(label) for label in range(network.config.num_embeds_ada_norm)}
    with_num_classes(network, _DIT_NULL_CLASS)
    pipeline = diffusers.DiTPipeline(**parts, id2label=labels)
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


def _with_text(encoder: TextEncoder, parts: dict[str, Any]) -> Any:
    """The text encoder's pipeline with these other parts."""
    own = encoder.pipeline
    settings = {
        name: own.config[name] for name in ("requires_safety_checker", *encoder.family.settings) if name in own.config
    }
    return type(own)(**{**own.components, **encoder.components, **settings, **parts})


def _class_name(model: DiffusionModel) -> str:
    """Of the pipeline."""
    network, conditioning = type(model.network).__name__, model.conditioning
    flow, latents = model.schedule.flow, model.codec.autoencoder is not None
    if network == "UNet2DModel" and isinstance(conditioning, Unconditional):
        if not latents:
            return "DDPMPipeline" if flow else "DDIMPipeline"
        if not flow:
            return "LDMPipeline"
    if network == "DiTTransformer2DModel" and isinstance(conditioning, ClassConditioning) and not flow:
        return "DiTPipeline"
    what = f"a {network} with {type(conditioning).__name__} in {'latent' if latents else 'pixel'} space"
    if isinstance(conditioning, TextConditioning):
        name = type(conditioning.encoder.pipeline).__name__
        has: Any = get_type_hints(type(conditioning.encoder.pipeline).__init__)
        its_network, its_scheduler = has[FAMILIES[name].network].__name__, has["scheduler"].__name__
        if its_network == network and its_scheduler.startswith("FlowMatch") == flow:
            return name
        what = f"a {network} with the text of a {name}"
    raise ConfigurationError(
        f"diffusers has no pipeline for {what}{' and flow matching' if flow else ''}. {_EXPORTABLE}"
    )


def _check_shape(model: DiffusionModel, name: str) -> None:
    """Refuse what the pipeline would sample in another shape, scale or class."""
    codec, (_, height, width) = model.codec, model.latent_shape
    if codec.autoencoder is None and (float(codec.scale), float(codec.shift)) != (1.0, 0.0):
        raise ConfigurationError(
            f"The pixels are scaled by {float(codec.scale):.4g} and shifted by {float(codec.shift):.4g} (`scale` of the codec), which a "
            f"{name} cannot undo; train with a LatentCodec of `scale: 1.0`, or none, to export."
        )
    if type(codec.autoencoder).__name__ == "VQModel" and FAMILIES[name].text:
        raise ConfigurationError(
            f"A {name} has an AutoencoderKL or AutoencoderTiny, none of the model's class, VQModel."
        )
    if height != width and name in ("LDMPipeline", "DiTPipeline"):
        raise ConfigurationError(f"The latents are {height}×{width}; a {name} samples square ones only.")
    if name != "DiTPipeline":
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


def image_size(pipeline: Any, model: DiffusionModel) -> tuple[int, int]:
    """(height, width) in pixels, as a text-to-image pipeline is told to sample in the model's latent shape."""
    height, width = model.latent_shape[1:]
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def _check_image_size(pipeline: Any, model: DiffusionModel) -> None:
    height, width = image_size(pipeline, model)
    if not model.schedule.flow and (height % 8 or width % 8):
        raise ConfigurationError(
            f"The images are {height}×{width}; a {type(pipeline).__name__} samples multiples of 8 pixels only."
        )


def _scheduler(schedule: NoiseSchedule, name: str) -> Any:
    """Return a scheduler whose steps are those of the schedule's own grid, on the same noise levels."""
    try:
        scheduler = schedule.sampling_scheduler()
        same = torch.allclose(as_schedule(scheduler).alpha ** 2, schedule.alpha**2, rtol=1e-5, atol=1e-7)
    except (NotImplementedError, ValueError, RuntimeError):
        same = False
    if not same:
        raise ConfigurationError(
            f"The noise schedule of this {schedule.name} is none that a DDIMScheduler can have; use one that is."
        )
    if name == "StableDiffusionPipeline":
        _set_as_stable_diffusion(scheduler)
    return scheduler


def _set_as_stable_diffusion(scheduler: Any) -> None:
    """What the pipeline would set anyway, with a warning where its images differ by it."""
    leading = scheduler.config.timestep_spacing == "leading"  # no other spacing has an offset
    differing = {
        name: scheduler.config[name]
        for name, value in _STABLE_DIFFUSION_SETS.items()
        if scheduler.config[name] != value and (leading or name != "steps_offset")
    }
    scheduler.register_to_config(**_STABLE_DIFFUSION_SETS)
    if differing:
        had = " and ".join(f"`{name}: {value}`" for name, value in differing.items())
        warnings.warn(
            f"The scheduler has {had}; a StableDiffusionPipeline always has {_STABLE_DIFFUSION_SETS}, so that its images differ from "
            "ldmprobe's. The model is the same: training does not know these settings.",
            stacklevel=3,
        )


def _autoencoder(model: DiffusionModel, scaling: Sequence[str]) -> Any:
    """Return a copy of the codec's autoencoder with its scale and shift in the settings that the pipeline reads, else in its weights; in
    pixel space, one that does nothing.
    """
    codec = model.codec
    if codec.autoencoder is None:
        return pixel_autoencoder(model.latent_shape[0])
    autoencoder = copy.deepcopy(codec.autoencoder)
    channels = (model.latent_shape[0], 1, 1)
    scale, shift = codec.scale, codec.shift
    settings: dict[str, Any] = dict.fromkeys(set(SCALING) & autoencoder.config.keys())
    if scale.ndim == 0:
        settings["scaling_factor"] = float(scale)
    elif "latents_std" in scaling and channels[0] == _XL_CHANNELS:
        settings |= {"scaling_factor": 1.0, "latents_std": _by_channel(1 / scale), "latents_mean": _by_channel(shift)}
        shift = shift.new_zeros(())
    else:
        settings["scaling_factor"] = 1.0
        _fold_scale(autoencoder, 1 / scale)
        shift = shift * scale
    if "shift_factor" in scaling and shift.ndim == 0:
        settings["shift_factor"] = float(shift)
    elif bool((shift != 0).any()):
        _fold_shift(autoencoder, shift.expand(channels))
    if settings.get("shift_factor", 0.0) is None:
        settings["shift_factor"] = 0.0
    autoencoder.register_to_config(**settings)
    return autoencoder


def _by_channel(values: Tensor) -> list[float]:
    return [float(value) for value in values.flatten()]


def _fold_scale(autoencoder: Any, deviation: Tensor) -> None:
    """Divide an AutoencoderKL's latents by a standard deviation for each channel (c, 1, 1), in the weights of its pointwise convolutions."""
    channels, deviation = len(deviation), deviation.flatten()
    _check_foldable(autoencoder, "scaled by channel", classes=("AutoencoderKL",))
    _add_pointwise(autoencoder, "quant_conv", 2 * channels)
    _add_pointwise(autoencoder, "post_quant_conv", channels)
    encoding, decoding = autoencoder.quant_conv, autoencoder.post_quant_conv
    encoding.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    encoding.bias[:channels] /= deviation
    encoding.bias[channels:] -= 2 * deviation.log()  # the posterior's log-variance
    decoding.weight *= deviation.view(1, -1, 1, 1)


def _fold_shift(autoencoder: Any, shift: Tensor) -> None:
    """Subtract ``shift`` (c, 1, 1) from an autoencoder's latents, in the weights of its pointwise convolutions, which no padding touches."""
    channels, shift = len(shift), shift.flatten()
    _check_foldable(autoencoder, f"shifted by {in_digits(shift[:1], '.4g')}", classes=("AutoencoderKL", "VQModel"))
    if type(autoencoder).__name__ == "AutoencoderKL":
        _add_pointwise(autoencoder, "quant_conv", 2 * channels)
        _add_pointwise(autoencoder, "post_quant_conv", channels)
    else:
        autoencoder.quantize.embedding.weight -= shift
    decoding = autoencoder.post_quant_conv
    autoencoder.quant_conv.bias[:channels] -= shift  # the rest of AutoencoderKL's is the posterior's log-variance
    decoding.bias += decoding.weight.sum((2, 3)) @ shift.to(decoding.weight)


def _check_foldable(autoencoder: Any, how: str, classes: Sequence[str]) -> None:
    name = type(autoencoder).__name__
    if name not in classes or autoencoder.config.get("norm_type") == "spatial":
        raise ConfigurationError(
            f"The latents of this {name} are {how}, which diffusers' pipelines do not undo and which its weights cannot "
            "take; train with a number as the codec's `scale` to export."
        )


def _add_pointwise(autoencoder: Any, name: str, channels: int) -> None:
    """An identity where the autoencoder does without this convolution."""
    if getattr(autoencoder, name) is not None:
        return
    identity = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(identity.weight)
    nn.init.zeros_(identity.bias)  # type: ignore[arg-type]
    setattr(autoencoder, name, identity)
    autoencoder.register_to_config(**{f"use_{name}": True})
