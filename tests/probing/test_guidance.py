"""Guidance that cannot guide is refused: of pipelines whose null condition is the empty prompt, zeros, a class, or
none."""

import math

import numpy as np
import pytest
import torch

from ldmprobe import ClassConditioning, ClassifierFreeGuidance
from ldmprobe.pretrained.load import load_pipeline
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from tests.helpers import gaussian_model, refused
from tests.pipelines import saved
from tests.probing.gaussian import draw, exact_reference


def check(model, scale):
    ClassifierFreeGuidance(scale).check(model)


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


def test_guided_samples_have_no_ideal_and_those_without_guidance_keep_theirs():
    model, reference = gaussian_model(), exact_reference(gaussian_model())
    model.conditioning = ClassConditioning(3)
    guided, plain = (
        probe_sampling(model, reference, Sampling(8, 3, guidance=ClassifierFreeGuidance(scale))) for scale in (3.0, 1.0)
    )
    for name in ("step_kl_ideal", "marginal_gap_ideal"):
        assert np.isnan(guided.curves[name].value).all()
        assert np.isfinite(plain.curves[name].value).all()
    gaps = {"sampler_gap", "network_gap"}
    assert guided.scalars.keys().isdisjoint(gaps)
    assert gaps <= plain.scalars.keys()
    assert "by design, so that there are no ideal curves" in guided.provenance["caveats"][0]


def test_samples_of_all_classes_alike_are_told_of_where_the_data_are_not():
    model, reference = gaussian_model(), exact_reference(gaussian_model())
    model.conditioning = ClassConditioning(3)
    latents, labels = draw(model, 60), torch.arange(60)
    caveats = [
        probe_sampling(model, reference, Sampling(8, 3), held_out=HeldOut(latents, {"class_labels": told}))
        .provenance["caveats"]
        for told in (labels % 3, labels // 50)
    ]  # fmt: skip
    assert caveats[0] == []
    assert "the 3 classes in equal shares, and the data's have 0.0% to 83.3% each" in caveats[1][0]
