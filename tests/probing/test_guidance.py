"""Guidance that cannot guide is refused: of pipelines whose null condition is the empty prompt, zeros, a class, or
none."""

import math

import pytest

from ldmprobe import ClassifierFreeGuidance
from ldmprobe.pretrained.load import load_pipeline
from tests.helpers import gaussian_model, refused
from tests.pipelines import saved


def check(model, scale):
    ClassifierFreeGuidance(scale).check(model.conditioning, model.device)


@pytest.mark.parametrize("family", ["StableDiffusionPipeline", "StableDiffusion3Pipeline", "PixArtAlphaPipeline"])
def test_empty_prompts_are_no_guidance_where_they_are_the_null_condition(family):
    model = load_pipeline(str(saved(family)), ["", ""])
    with refused(r"guidance scale is 4, but there is no prompt .* Give --prompt"):
        check(model, 4.0)
    check(model, 1.0)
    check(load_pipeline(str(saved(family)), ["", "a red cat"]), 4.0)


def test_an_empty_prompt_is_the_null_condition_also_where_that_was_kept_in_half_precision():
    model = load_pipeline(str(saved("StableDiffusionPipeline")))
    null = model.conditioning.null(1, model.device)
    model.conditioning.kept[None] = {name: value.half() for name, value in null.items()}
    with refused("there is no prompt to guide by"):
        check(model, 4.0)


def test_the_empty_prompt_guides_a_model_whose_null_condition_is_zeros():
    check(load_pipeline(str(saved("StableDiffusionXLPipeline"))), 4.0)


def test_classes_guide_and_nothing_does_not():
    check(load_pipeline(str(saved("DiTPipeline"))), 4.0)
    with refused("the model has no condition to guide by; set it to 1"):
        check(gaussian_model(), 4.0)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_not_finite_is_refused(scale):
    with refused(r"guidance scale is -?(nan|inf); expected a finite number"):
        ClassifierFreeGuidance(scale)
