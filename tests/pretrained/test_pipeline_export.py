"""as_pipeline: a pipeline taken apart and put together again samples as it did, and as ldmprobe does."""

import re

import pytest
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, VQModel

from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.samplers import DDIM
from ldmprobe.diffusion.trajectory import sampling_steps
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import (
    ClassConditioning,
    Conditioning,
    Conditions,
    LowResolution,
    Masked,
    SmallCLIP,
    StyleSource,
    TextConditioning,
)
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.guidance import ClassifierFreeGuidance
from ldmprobe.pretrained.export import as_pipeline
from ldmprobe.pretrained.load import load_pipeline
from ldmprobe.pretrained.pixel_autoencoder import pixel_autoencoder
from ldmprobe.probing.probe import evaluating
from tests.helpers import FLOAT32, WHOLE_PATH, refused, sd_scheduler, tiny_unet
from tests.pipelines import (
    ALONE,
    WORDS,
    autoencoder,
    conditional_unet,
    pictures,
    saved,
    stable_diffusion_xl,
    tell_pictures,
    tiny,
)

STEPS, PROMPTS = 4, ["a red cat", "blue dog"]


@torch.no_grad()
def ours(model: DiffusionModel, guidance_scale: float) -> torch.Tensor:
    """Samples 0 and 1, in [0, 1] and (N, H, W, C) as diffusers gives images."""
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    with evaluating(model.modules):
        told = model.conditioning.for_samples(torch.arange(2))
        denoise = model.predictor(told, 2, ClassifierFreeGuidance(guidance_scale))
        program = DDIM().program(model.schedule.native_grid(STEPS))
        *_, last = sampling_steps(denoise, noise, program, model.schedule.prediction)
        return (model.codec.decode(last.z_s) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def theirs(pipeline, model: DiffusionModel, guidance_scale: float) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    call = {"batch_size": 2}
    if isinstance(model.conditioning, ClassConditioning):
        call = {"class_labels": [0, 1], "guidance_scale": guidance_scale}
    elif isinstance(model.conditioning, TextConditioning):
        height, width = (size * pipeline.vae_scale_factor for size in model.latent_shape[1:])
        call = {"prompt": model.conditioning.as_columns(torch.arange(2))["caption"], "height": height, "width": width}
        call |= {"guidance_scale": guidance_scale}
        call |= {"use_resolution_binning": False} if "PixArt" in type(pipeline).__name__ else {}
    generator = torch.Generator().manual_seed(5)
    images = pipeline(**call, num_inference_steps=STEPS, generator=generator, output_type="np").images
    return torch.from_numpy(images)


def assert_same_images(pipeline, model: DiffusionModel) -> None:
    for guidance_scale in (1.0, 4.0):
        expected = ours(model, guidance_scale)
        assert expected.std() > 0.01
        torch.testing.assert_close(theirs(pipeline, model, guidance_scale), expected, **WHOLE_PATH)


@pytest.mark.parametrize("family", ALONE)
def test_a_pipeline_comes_out_as_it_went_in(family, tmp_path):
    original = tiny(family)
    model = load_pipeline(str(saved(family)), prompts=PROMPTS)
    as_pipeline(model).save_pretrained(tmp_path)
    written = DiffusionPipeline.from_pretrained(tmp_path)
    assert_same_images(written, model)
    assert type(written).__name__ == ("DDIMPipeline" if family == "DDPMPipeline" else family.split(",")[0])
    for name, part in original.components.items():
        if isinstance(part, torch.nn.Module):
            torch.testing.assert_close(getattr(written, name).state_dict(), part.state_dict(), rtol=0, atol=0)


def text_model(codec=None, scheduler=None, network=None, shape=(2, 8, 8), beside=None) -> DiffusionModel:
    torch.manual_seed(0)
    conditioning: Conditioning = TextConditioning(SmallCLIP(WORDS, width=16, num_heads=2), prompts=PROMPTS)
    conditioning = Conditions([beside, conditioning]) if beside else conditioning
    network = network or conditional_unet(in_channels=shape[0], out_channels=shape[0])
    schedule = as_schedule(scheduler or sd_scheduler())
    codec = codec or LatentCodec(autoencoder(scaling_factor=0.5))
    return DiffusionModel(network.eval(), schedule, shape, codec, conditioning)


def shifted(latent_codec: LatentCodec) -> LatentCodec:
    latent_codec.shift.fill_(0.3)
    return latent_codec


BY_CHANNEL = {"latents_mean": [-1.6, 0.2], "latents_std": [8.4, 2.3], "scaling_factor": 0.5}

FROM_SCRATCH = {
    "latents": lambda: text_model(),
    "a shift": lambda: text_model(shifted(LatentCodec(autoencoder(scaling_factor=0.5)))),
    "by channel": lambda: text_model(LatentCodec(autoencoder(**BY_CHANNEL))),
    "AutoencoderTiny": lambda: text_model(
        LatentCodec(AutoencoderTiny(latent_channels=2, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
                                    encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8)))
    ),
    "pixels": lambda: text_model(LatentCodec(), shape=(3, 16, 16)),
    "not square": lambda: text_model(shape=(2, 8, 4)),
    "larger than the network's sample_size": lambda: text_model(shape=(2, 16, 16)),
    "DDPM, trailing": lambda: text_model(scheduler=DDPMScheduler(timestep_spacing="trailing", clip_sample=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_a_text_model_from_scratch_is_a_stable_diffusion_pipeline(name, tmp_path):
    model = FROM_SCRATCH[name]()
    as_pipeline(model).save_pretrained(tmp_path)
    assert_same_images(DiffusionPipeline.from_pretrained(tmp_path), model)
    again = load_pipeline(str(tmp_path), prompts=PROMPTS)
    torch.testing.assert_close(ours(again, 4.0), ours(model, 4.0), **WHOLE_PATH)


PICTURES = {
    "StableDiffusionInpaintPipeline": (lambda: Masked(cells="nearest"), 5, {}),
    "StableDiffusionUpscalePipeline": (lambda: LowResolution(2, "bicubic", 30, 10), 3, {"num_class_embeds": 31}),
    "StableDiffusionInstructPix2PixPipeline": (lambda: StyleSource(present=False, scaled=False), 4, {}),
}


def told_a_picture(beside: Conditioning, channels: int = 5, **network) -> DiffusionModel:
    unet = conditional_unet(in_channels=4 + channels, out_channels=4, **network)
    codec = LatentCodec(autoencoder(channels=4, scaling_factor=0.5))
    model = text_model(codec, network=unet, shape=(4, 8, 8), beside=beside)
    tell_pictures(model)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", PICTURES)
def test_a_model_that_is_told_a_picture_beside_text_is_the_pipeline_that_is_told_it(name, tmp_path):
    """That for upscaling gives any autoencoder a scale of its own, and the autoencoder's weights have the rest."""
    make, channels, network = PICTURES[name]
    model = told_a_picture(make(), channels, **network)
    told = model.conditioning
    model.conditioning = told.conditioning
    pipeline = as_pipeline(model)
    pipeline.save_pretrained(tmp_path)
    assert type(pipeline).__name__ == name
    again = load_pipeline(str(tmp_path))
    tell_pictures(again)
    levels = again.conditioning.conditioning.parts[0].settings.get("sampling_level")
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, found = (each.for_samples(torch.arange(2)) for each in (told, again.conditioning))
    assert levels == {"StableDiffusionUpscalePipeline": 20}.get(name)  # as its call has it, and 10 above
    found = expected if levels else found
    torch.testing.assert_close(found, expected, **FLOAT32)
    answers = [each.predict(z, torch.full((2,), 500), found) for each in (model, again)]
    torch.testing.assert_close(answers[1], answers[0], **FLOAT32)
    torch.testing.assert_close(again.codec.decode(z), model.codec.decode(z), **WHOLE_PATH)
    images = pictures()["image"]
    latents = [each.codec.encode(images, sample_posterior=False) for each in (again, model)]
    torch.testing.assert_close(*latents, **WHOLE_PATH)


def test_stable_diffusion_3_keeps_a_shift_beside_the_weights():
    model = load_pipeline(str(saved("StableDiffusion3Pipeline")))
    model.codec.shift.fill_(0.7)
    pipeline = as_pipeline(model)
    assert pipeline.vae.config.shift_factor == pytest.approx(0.7)
    torch.testing.assert_close(pipeline.vae.state_dict(), model.codec.autoencoder.state_dict(), rtol=0, atol=0)


def test_stable_diffusion_xl_keeps_a_scale_by_channel_beside_the_weights(tmp_path):
    mean, deviation = [-1.6, 0.2, 1.1, 0.7], [8.4, 2.3, 0.5, 1.9]
    stable_diffusion_xl(channels=4, latents_mean=mean, latents_std=deviation).save_pretrained(tmp_path)
    model = load_pipeline(str(tmp_path), prompts=PROMPTS)
    pipeline = as_pipeline(model)
    assert pipeline.vae.config.latents_mean == pytest.approx(mean)
    torch.testing.assert_close(pipeline.vae.state_dict(), model.codec.autoencoder.state_dict(), rtol=0, atol=0)
    assert_same_images(pipeline, model)


def test_pixels_pass_an_autoencoder_that_does_nothing():
    codec, images = LatentCodec(pixel_autoencoder(3)), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(codec.encode(images), images, **FLOAT32)
    torch.testing.assert_close(codec.decode(images), images, **FLOAT32)


def test_the_model_stays_as_it_is():
    model = text_model(shifted(LatentCodec(autoencoder(scaling_factor=0.5))), shape=(2, 16, 16))
    modules = [model.network, model.codec.autoencoder, model.conditioning.encoder]
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    as_pipeline(model)
    torch.testing.assert_close([dict(module.state_dict()) for module in modules], before, rtol=0, atol=0)
    assert (model.network.config.sample_size, model.codec.autoencoder.config.scaling_factor) == (8, 0.5)


def test_what_stable_diffusion_sets_in_a_scheduler_is_said():
    told = "has `steps_offset: 0` and `clip_sample: True`; a StableDiffusionPipeline always"
    with pytest.warns(UserWarning, match=told):
        pipeline = as_pipeline(text_model(scheduler=DDPMScheduler()))
    assert (pipeline.scheduler.config.steps_offset, pipeline.scheduler.config.clip_sample) == (1, False)


def of_the_model(beside: Conditioning, channels: int = 5) -> DiffusionModel:
    model = told_a_picture(beside, channels)
    model.conditioning = model.conditioning.conditioning
    return model


REFUSED = {
    "no pipeline for a UNet2DConditionModel with the text of a StableDiffusionPipeline in latent space and flow matching. Those": lambda: text_model(
        scheduler=FlowMatchEulerDiscreteScheduler()
    ),
    "no pipeline for a UNet2DModel with the text of a StableDiffusionPipeline in latent space. Those": lambda: text_model(network=tiny_unet()),
    "AutoencoderKL or AutoencoderTiny, none of the model's class, VQModel": lambda: text_model(
        LatentCodec(autoencoder(VQModel, num_vq_embeddings=16), scale=1.0)
    ),
    "Masked has fill 0, cells 'any', present False, and the latents have 4 channels; a StableDiffusionInpaintPipeline has 0, 'nearest'": lambda: of_the_model(Masked()),
    "StyleSource has present True, scaled True; a StableDiffusionInstructPix2PixPipeline has False": lambda: of_the_model(StyleSource()),
    "joins small images as large as the latents": lambda: of_the_model(LowResolution(4), 3),
    "The images are 12×12; a StableDiffusionPipeline samples multiples of 8": lambda: text_model(LatentCodec(), shape=(3, 12, 12)),
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_text_that_no_pipeline_fits_is_refused(text):
    with refused(re.escape(text)):
        as_pipeline(REFUSED[text]())
