"""Thirteen families of pipelines: our path through the noise levels is the pipeline's own, step by step."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

from ldmprobe import DDIM, ClassifierFreeGuidance, InstructionGuidance, Preconditioned
from ldmprobe.diffusion.trajectory import sampling_steps
from ldmprobe.models.families import FAMILIES
from ldmprobe.pretrained.load import load_pipeline
from tests.helpers import WHOLE_PATH, guided
from tests.pipelines import (
    ALONE,
    BESIDE,
    IMAGE_SIZE,
    PROMPTS,
    TINY,
    saved,
    stable_diffusion_xl,
    tell_pictures,
    tiny,
    wide_pixart,
)

CLASSES, STEPS, SIZE = [0, 1], 4, IMAGE_SIZE
GUIDED = [name for name in TINY if name not in ("DDPMPipeline", "DDIMPipeline", "LDMPipeline")]


def called(pipeline: Any, guidance_scale: float) -> tuple[list[Tensor], np.ndarray]:
    """The pipeline's own ``__call__``: what its network was given at each step, (N, C, H, W), and its images, (N, H, W,
    C) in [0, 1]."""
    family = FAMILIES[type(pipeline).__name__]
    arguments: dict[str, Any] = {"batch_size": 2}
    if family.text:
        arguments = {"prompt": PROMPTS, "guidance_scale": guidance_scale}
    if type(pipeline).__name__ == "DiTPipeline":
        arguments = {"class_labels": CLASSES, "guidance_scale": guidance_scale}
    if type(pipeline).__name__.startswith("PixArt"):
        arguments |= {"use_resolution_binning": False}
    if family.text_of:
        arguments |= BESIDE[type(pipeline).__name__]()
    elif family.text:
        arguments |= {"height": SIZE, "width": SIZE}
    given = []

    def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        z_t = (args[0] if args else kwargs["hidden_states"])[:2]
        given.append(z_t[:, : 4 if family.text_of else None].clone())

    hook = getattr(pipeline, family.network).register_forward_pre_hook(keep, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    images = pipeline(**arguments, num_inference_steps=STEPS, generator=generator, output_type="np").images
    hook.remove()
    return given, images


@torch.no_grad()
def assert_same_path(folder: Path, pipeline: Any, guidance_scale: float) -> None:
    """From the same noise, and with the same conditions, the model in ``folder`` goes the way of ``pipeline``."""
    given, images = called(pipeline, guidance_scale)
    model = load_pipeline(str(folder), prompts=PROMPTS)
    family = FAMILIES[type(pipeline).__name__]
    if family.text_of:
        tell_pictures(model)
    elif family.text:
        model.conditioning.encoder.set_image_size(model.network, SIZE, SIZE)
    edits = type(pipeline).__name__ == "StableDiffusionInstructPix2PixPipeline" and guidance_scale != 1
    guidance = InstructionGuidance(1.5, guidance_scale) if edits else ClassifierFreeGuidance(guidance_scale)
    guidance.check(model)
    grid = model.schedule.native_grid(STEPS)
    denoise = model.predictor(model.conditioning.for_samples(torch.arange(2)), 2, guidance)
    steps = list(sampling_steps(denoise, given[0], DDIM().program(grid), model.schedule.prediction))
    assert len(given) == len(steps) == STEPS
    for theirs, ours in zip(given, steps, strict=True):
        torch.testing.assert_close(ours.z_t, theirs, **WHOLE_PATH)
    decoded = (model.codec.decode(steps[-1].z_s) / 2 + 0.5).clamp(0, 1)
    np.testing.assert_allclose(decoded.permute(0, 2, 3, 1).numpy(), images, **WHOLE_PATH)
    assert np.abs(images[0] - images[1]).max() > 0.01


@pytest.mark.parametrize(
    ("name", "guidance_scale"), [*((name, 1.0) for name in ALONE), *((name, 4.0) for name in GUIDED)]
)
def test_the_path_is_that_of_the_pipelines_own_call(name, guidance_scale, monkeypatch):
    if name == "StableDiffusionUpscalePipeline":  # which draws the noise of its small images first
        own = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))
        monkeypatch.setattr("ldmprobe.models.conditioning.low_resolution.sample_noise", lambda *args, **kwargs: own)
    pipeline = DiffusionPipeline.from_pretrained(saved(name))
    if name == "DDPMPipeline":  # whose own sampler draws noise at each step
        pipeline = DDIMPipeline(pipeline.unet, DDIMScheduler.from_config(pipeline.scheduler.config))
    assert_same_path(saved(name), pipeline, guidance_scale)


BY_CHANNEL = {"latents_mean": [-1.6, 0.2, 1.1, 0.7], "latents_std": [8.4, 2.3, 0.5, 1.9]}


def test_latents_are_scaled_by_channel_as_the_pipeline_does(tmp_path):
    pipeline = stable_diffusion_xl(channels=4, **BY_CHANNEL)
    pipeline.save_pretrained(tmp_path)
    assert_same_path(tmp_path, pipeline, 1.0)


def test_a_shift_that_the_pipeline_does_not_read_is_not_read_here_and_that_is_said(tmp_path):
    pipeline = tiny("StableDiffusionPipeline")
    pipeline.vae.register_to_config(shift_factor=0.4)
    pipeline.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"shift_factor 0.4, which a StableDiffusionPipeline does not read"):
        assert_same_path(tmp_path, pipeline, 1.0)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_stable_diffusion_3_does_without_t5(guidance_scale, tmp_path):
    pipeline = tiny("StableDiffusion3Pipeline")
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipeline.save_pretrained(tmp_path)
    assert_same_path(tmp_path, pipeline, guidance_scale)


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
SD_STEPS = {"set_alpha_to_one": False, "steps_offset": 1}
SHIPPED: dict[str, tuple[str, Any, dict[str, Any], dict[str, Any]]] = {
    "Stable Diffusion 1.5": (
        "StableDiffusionPipeline",
        PNDMScheduler,
        SD | SD_STEPS | {"clip_sample": False, "skip_prk_steps": True, "trained_betas": None},
        SD | SD_STEPS,
    ),
    "Stable Diffusion 2.1": (
        "StableDiffusionPipeline",
        DDIMScheduler,
        SD | SD_STEPS | {"clip_sample": False, "skip_prk_steps": True, "prediction_type": "v_prediction"},
        SD | SD_STEPS | {"prediction_type": "v_prediction"},
    ),
    "Stable Diffusion XL": (
        "StableDiffusionXLPipeline",
        EulerDiscreteScheduler,
        SD
        | SD_STEPS
        | {"clip_sample": False, "interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0}
        | {"skip_prk_steps": True, "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False},
        SD | SD_STEPS | {"timestep_spacing": "leading"},
    ),
    "PixArt-α": (
        "PixArtAlphaPipeline",
        DPMSolverMultistepScheduler,
        LINEAR
        | {"algorithm_type": "dpmsolver++", "dynamic_thresholding_ratio": 0.995, "lambda_min_clipped": -math.inf}
        | {"lower_order_final": True, "prediction_type": "epsilon", "sample_max_value": 1.0, "solver_order": 2}
        | {"solver_type": "midpoint", "steps_offset": 0, "thresholding": False, "timestep_spacing": "linspace"}
        | {"trained_betas": None, "use_karras_sigmas": False, "variance_type": None},
        LINEAR | {"timestep_spacing": "linspace"},
    ),
}
"""As the hub has them: the pipeline's class and the scheduler's, what its file says, and the DDIM that follows from it."""


@pytest.mark.parametrize("shipped", SHIPPED)
def test_with_another_scheduler_the_path_is_ddims_on_its_schedule(shipped, tmp_path):
    name, cls, settings, ddim = SHIPPED[shipped]
    pipeline = DiffusionPipeline.from_pretrained(saved(name), scheduler=cls.from_config(settings))
    pipeline.save_pretrained(tmp_path)
    pipeline.scheduler = DDIMScheduler(**ddim, clip_sample=False)
    assert_same_path(tmp_path, pipeline, 4.0)


@torch.no_grad()
def test_a_network_of_edm_is_preconditioned_as_its_scheduler_does(tmp_path):
    pipeline = tiny("StableDiffusionXLPipeline")
    pipeline.register_modules(scheduler=EDMEulerScheduler(sigma_data=0.5))
    pipeline.save_pretrained(tmp_path)
    given, images = called(pipeline, 4.0)
    model = load_pipeline(str(tmp_path), prompts=PROMPTS)
    assert isinstance(model.network, Preconditioned)
    model.conditioning.encoder.set_image_size(model.network, SIZE, SIZE)
    grid = model.schedule.native_grid(STEPS)
    scales = 1 / (grid.sigma_t**2 + 0.25).sqrt()
    denoise = model.predictor(model.conditioning.for_samples(torch.arange(2)), 2, ClassifierFreeGuidance(4.0))
    z_T = given[0] / float(scales[0])
    assert float(z_T.std()) == pytest.approx(grid.prior_std, rel=0.2)
    steps = list(sampling_steps(denoise, z_T, DDIM().program(grid), model.schedule.prediction))
    for theirs, ours, scale in zip(given, steps, scales, strict=True):
        torch.testing.assert_close(ours.z_t * float(scale), theirs, **WHOLE_PATH)
    decoded = (model.codec.decode(steps[-1].z_s) / 2 + 0.5).clamp(0, 1)
    np.testing.assert_allclose(decoded.permute(0, 2, 3, 1).numpy(), images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_pixart_alpha_of_1024_pixels_is_told_resolution_and_aspect_ratio(guidance_scale, tmp_path):
    pipeline = tiny("PixArtAlphaPipeline")
    pipeline.register_modules(transformer=wide_pixart(sample_size=128))
    pipeline.save_pretrained(tmp_path)
    model = load_pipeline(str(tmp_path))
    resolution = model.conditioning.for_samples(torch.arange(1))["resolution"]
    assert resolution.tolist() == [[256.0, 256.0]]  # 128 latents, of 2 pixels each
    assert_same_path(tmp_path, DiffusionPipeline.from_pretrained(tmp_path), guidance_scale)


@torch.no_grad()
@pytest.mark.parametrize("name", ALONE)
def test_a_half_precision_network_predicts_about_the_same(name):
    model = load_pipeline(str(saved(name)), prompts=PROMPTS)
    z = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = model.conditioning.for_samples(torch.arange(2))
    t = torch.full((2,), float(model.schedule.model_time[500])).to(model.schedule.model_time.dtype)
    scale = 4.0 if name in GUIDED else 1.0
    whole = guided(model, z, t, condition, scale)
    model.network.to(torch.bfloat16)
    half = guided(model, z, t, condition, scale)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0, atol=0.1 * float(whole.abs().max()))
