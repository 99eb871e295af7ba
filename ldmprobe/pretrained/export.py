"""A DiffusionModel put together as a diffusers pipeline: the inverse of ``load_pipeline``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.schedule import NoiseSchedule
from ldmprobe.errors import ConfigurationError
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.families import FAMILIES, PipelineSpec
from ldmprobe.models.latent_scale import SCALING, in_digits
from ldmprobe.pretrained.pixel_autoencoder import pixel_autoencoder
from ldmprobe.types import Component, PlainValues

# Fixed in StableDiffusionXLPipeline.__call__, where it reads the mean and standard deviation of its latents.
_XL_CHANNELS = 4
_EXPORTABLE = (
    "Those it has: UNet2DModel without classes in pixel space (DDIMPipeline; DDPMPipeline for flow matching) or on the "
    "latents of an autoencoder (LDMPipeline), DiTTransformer2DModel with classes (DiTPipeline), and with text the "
    "network that the text encoder's own pipeline has, such as UNet2DConditionModel for SmallCLIP "
    "(StableDiffusionPipeline). The parts of any other can be saved one by one from Python: "
    "`ldmprobe.load_model(CHECKPOINT)` has `network`, `codec.autoencoder` and `schedule.scheduler`, each with "
    "diffusers' `save_pretrained`; its latents are (encoder(x) − codec.shift) · codec.scale."
)


@torch.no_grad()
def as_pipeline(model: DiffusionModel) -> Component:
    """The diffusers pipeline that samples as ``model`` does; ``model`` stays as it is.

    | model | pipeline | its scheduler |
    |---|---|---|
    | UNet2DModel, pixels | DDIMPipeline | DDIMScheduler with the model's schedule |
    | UNet2DModel, pixels, flow matching | DDPMPipeline | the model's own |
    | UNet2DModel, latents of an autoencoder | LDMPipeline | DDIMScheduler |
    | DiTTransformer2DModel, classes | DiTPipeline | DDIMScheduler |
    | text, the network of the encoder's pipeline | the text encoder's | DDIMScheduler; for flow matching its own |
    | Stable Diffusion's text beside Masked | StableDiffusionInpaintPipeline | DDIMScheduler |
    | beside LowResolution | StableDiffusionUpscalePipeline | DDIMScheduler |
    | beside StyleSource | StableDiffusionInstructPix2PixPipeline | DDIMScheduler |

    These pipelines know a latent scale, which goes into the autoencoder's ``scaling_factor``; Stable Diffusion 3's
    knows a shift, too, and XL's both by channel, if there are four; for any other they go into the autoencoder's
    weights. In pixel space a pipeline that cannot do without an autoencoder has one that does nothing. DiTPipeline
    takes class 1,000 for the null class: a DiT of fewer classes is padded with it up to there, and ``id2label`` says
    how many there are.

    Raises:
        ConfigurationError: diffusers has no pipeline that would give the same images.
    """
    name = _class_name(model)
    family = FAMILIES[name]
    _check_shape(model, name)
    network: Component = copy.deepcopy(model.network).eval()
    height, width = model.latent_shape[1:]
    if family.network == "unet":  # what a transformer was built for stays: others it is told in the call
        network.register_to_config(sample_size=height if height == width else (height, width))
    parts = {family.network: network, "scheduler": _scheduler(model.schedule, name)}
    if family.autoencoder:
        parts[family.autoencoder] = _autoencoder(model, family)
    for part in parts.values():
        if part.config.get("_name_or_path"):  # the folder here that it was read from, which diffusers writes down
            part.register_to_config(_name_or_path="")
    pipeline = model.conditioning.assemble(name, parts)
    if family.text and not model.schedule.flow:
        height, width = height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor
        if height % 8 or width % 8:
            raise ConfigurationError(f"The images are {height}×{width}; a {name} samples multiples of 8 pixels only.")
    return pipeline


def _class_name(model: DiffusionModel) -> str:
    """Return the name of the pipeline class that samples as the model does."""
    network, conditioning = type(model.network).__name__, model.conditioning
    flow, latents = model.schedule.flow, model.codec.autoencoder is not None
    name = conditioning.pipeline_name(network, latents, flow)
    if name is None:
        raise ConfigurationError(
            f"diffusers has no pipeline for a {network} with {conditioning.label} in "
            f"{'latent' if latents else 'pixel'} space{' and flow matching' if flow else ''}. {_EXPORTABLE}"
        )
    return name


def _check_shape(model: DiffusionModel, name: str) -> None:
    """Refuse what the pipeline would sample in another shape, scale or class."""
    codec, (_, height, width) = model.codec, model.latent_shape
    if codec.autoencoder is None and (float(codec.scale), float(codec.shift)) != (1.0, 0.0):
        raise ConfigurationError(
            f"The pixels are scaled by {float(codec.scale):.4g} and shifted by {float(codec.shift):.4g} (`scale` of "
            f"the codec), which a {name} cannot undo; train with a LatentCodec of `scale: 1.0`, or none, to export."
        )
    if type(codec.autoencoder).__name__ == "VQModel" and FAMILIES[name].text:
        raise ConfigurationError(
            f"A {name} has an AutoencoderKL or AutoencoderTiny, none of the model's class, VQModel."
        )
    if FAMILIES[name].text_of and type(codec.autoencoder).__name__ != "AutoencoderKL":
        raise ConfigurationError(f"A {name} has an AutoencoderKL, and the model {type(codec.autoencoder).__name__}.")
    if height != width and FAMILIES[name].square:
        raise ConfigurationError(f"The latents are {height}×{width}; a {name} samples square ones only.")
    model.conditioning.check_exportable(model.network, model.latent_shape)


def _scheduler(schedule: NoiseSchedule, name: str) -> Component:
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
    if FAMILIES[name].sets:
        _set_as_pipeline(scheduler, name)
    return scheduler


def _set_as_pipeline(scheduler: Component, name: str) -> None:
    """Set what the pipeline would set anyway, with a warning where its images differ by it."""
    settings = dict(FAMILIES[name].sets)
    leading = scheduler.config.timestep_spacing == "leading"  # no other spacing has an offset
    differing = {
        setting: scheduler.config[setting]
        for setting, value in settings.items()
        if scheduler.config[setting] != value and (leading or setting != "steps_offset")
    }
    scheduler.register_to_config(**settings)
    if differing:
        had = " and ".join(f"`{setting}: {value}`" for setting, value in differing.items())
        warnings.warn(
            f"The scheduler has {had}; a {name} always has {settings}, so that its images differ from ldmprobe's. The "
            "model is the same: training does not know these settings.",
            stacklevel=4,
        )


def _autoencoder(model: DiffusionModel, family: PipelineSpec) -> Component:
    """Return a copy of the codec's autoencoder with its scale and shift in the settings that the pipeline reads, else
    in its weights; in pixel space, one that does nothing.
    """
    codec, scaling = model.codec, family.scaling
    if codec.autoencoder is None:
        return pixel_autoencoder(model.latent_shape[0])
    autoencoder = copy.deepcopy(codec.autoencoder)
    channels = (model.latent_shape[0], 1, 1)
    scale, shift = codec.scale, codec.shift
    settings: PlainValues = dict.fromkeys(set(SCALING) & autoencoder.config.keys())
    if family.fixed_scale is not None:
        fixed = scale.new_tensor(family.fixed_scale)
        settings["scaling_factor"] = family.fixed_scale
        if not torch.equal(scale, fixed):
            _fold_scale(autoencoder, (fixed / scale).expand(channels))
            shift = shift * scale / fixed
    elif scale.ndim == 0:
        settings["scaling_factor"] = float(scale)
    elif "latents_std" in scaling and channels[0] == _XL_CHANNELS:
        by_channel = {"latents_std": (1 / scale).flatten().tolist(), "latents_mean": shift.flatten().tolist()}
        settings |= {"scaling_factor": 1.0, **by_channel}
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


def _fold_scale(autoencoder: Component, deviation: Tensor) -> None:
    """Divide an AutoencoderKL's latents by a deviation for each channel (c, 1, 1), in its pointwise convolutions."""
    channels, deviation = len(deviation), deviation.flatten()
    _check_foldable(autoencoder, "scaled by channel", classes=("AutoencoderKL",))
    _add_pointwise(autoencoder, "quant_conv", 2 * channels)
    _add_pointwise(autoencoder, "post_quant_conv", channels)
    encoding, decoding = autoencoder.quant_conv, autoencoder.post_quant_conv
    encoding.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    encoding.bias[:channels] /= deviation
    encoding.bias[channels:] -= 2 * deviation.log()  # the posterior's log-variance
    decoding.weight *= deviation.view(1, -1, 1, 1)


def _fold_shift(autoencoder: Component, shift: Tensor) -> None:
    """Subtract ``shift`` (c, 1, 1) from latents, in the pointwise convolutions, which no padding touches."""
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


def _check_foldable(autoencoder: Component, how: str, classes: Sequence[str]) -> None:
    name = type(autoencoder).__name__
    if name not in classes or autoencoder.config.get("norm_type") == "spatial":
        raise ConfigurationError(
            f"The latents of this {name} are {how}, which diffusers' pipelines do not undo and which its weights "
            "cannot take; train with a number as the codec's `scale` to export."
        )


def _add_pointwise(autoencoder: Component, name: str, channels: int) -> None:
    """An identity where the autoencoder does without this convolution."""
    if autoencoder.config[f"use_{name}"]:
        return
    identity = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(identity.weight)
    nn.init.zeros_(identity.bias)  # type: ignore[arg-type]
    setattr(autoencoder, name, identity)
    autoencoder.register_to_config(**{f"use_{name}": True})
