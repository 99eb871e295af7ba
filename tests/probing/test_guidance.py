"""Guidance that cannot guide is refused: of pipelines whose null condition is the empty prompt, zeros, a class, or none."""

import math

import pytest

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.pretrained import load_pipeline
from ldmprobe.probing.ddim import probe_ddim
from ldmprobe.probing.guidance import check_guidance
from ldmprobe.standalone import sample_images
from tests.helpers import gaussian_model
from tests.pipelines import saved


@pytest.mark.parametrize("family", ["StableDiffusionPipeline", "StableDiffusion3Pipeline", "PixArtAlphaPipeline"])
def test_empty_prompts_are_no_guidance_where_they_are_the_null_condition(family):
    model = load_pipeline(str(saved(family)), ["", ""])
    with pytest.raises(ConfigurationError, match=r"`guidance_scale` is 4, but there is no prompt .* Give --prompt"):
        check_guidance(model, 4.0)
    check_guidance(model, 1.0)
    check_guidance(load_pipeline(str(saved(family)), ["", "a red cat"]), 4.0)


def test_an_empty_prompt_is_the_null_condition_also_where_that_was_kept_in_half_precision():
    model = load_pipeline(str(saved("StableDiffusionPipeline")))
    null = model.conditioning.null(1, model.device)
    model.conditioning.kept[None] = {name: value.half() for name, value in null.items()}
    with pytest.raises(ConfigurationError, match="there is no prompt to guide by"):
        check_guidance(model, 4.0)


def test_the_empty_prompt_guides_a_model_whose_null_condition_is_zeros():
    check_guidance(load_pipeline(str(saved("StableDiffusionXLPipeline"))), 4.0)


def test_classes_guide_and_nothing_does_not():
    check_guidance(load_pipeline(str(saved("DiTPipeline"))), 4.0)
    with pytest.raises(ConfigurationError, match="the model has no condition to guide by; set it to 1"):
        check_guidance(gaussian_model(), 4.0)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("draw", [probe_ddim, lambda model, **kwargs: sample_images(model, 8, 2, **kwargs)])
def test_a_scale_that_is_not_finite_is_refused_wherever_samples_are_drawn(draw, scale):
    with pytest.raises(ConfigurationError, match=r"`guidance_scale` is -?(nan|inf); expected a finite number"):
        draw(gaussian_model(), guidance_scale=scale)
