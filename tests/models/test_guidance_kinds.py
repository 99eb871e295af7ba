"""Guidances beside the plain one are equal to it where they should be."""

import pytest
import torch
from torch import Tensor

from ldmprobe import ClassConditioning, ClassifierFreeGuidance, Conditions, InstructionGuidance, RescaledGuidance
from ldmprobe.models.conditioning.style_source import StyleSource
from ldmprobe.models.guidance import Guidance
from tests.helpers import FLOAT32, refused

CPU = torch.device("cpu")


def conditioning() -> Conditions:
    source = StyleSource()
    source.shape = (1, 4, 4)
    return Conditions([source, ClassConditioning(3)])


def answer(z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
    """No linear function of what is told."""
    return (z_t + condition["concat"][:, :1]).sin() * (1 + condition["class_labels"].view(-1, 1, 1, 1))


def guided(guidance: Guidance) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    z_t, picture = (torch.randn(5, n, 4, 4, generator=generator) for n in (1, 2))
    condition = {"concat": picture, "class_labels": torch.tensor([0, 1, 2, 0, 1])}
    return guidance.guide(answer, conditioning(), CPU)(z_t, torch.zeros(5), condition)


def test_two_equal_scales_are_the_plain_guidance_and_two_ones_none():
    plain = guided(ClassifierFreeGuidance(1.0))
    assert torch.equal(guided(InstructionGuidance(1.0, 1.0)), plain)
    torch.testing.assert_close(guided(InstructionGuidance(2.5, 2.5)), guided(ClassifierFreeGuidance(2.5)), **FLOAT32)
    by_image = guided(InstructionGuidance(2.0, 1.0)) - plain  # one more ε_I − ε_∅
    by_both = guided(InstructionGuidance(2.0, 2.0)) - guided(InstructionGuidance(2.0, 1.0))
    torch.testing.assert_close(by_image + by_both, guided(ClassifierFreeGuidance(2.0)) - plain, **FLOAT32)
    assert by_image.abs().max() > 0.1 < by_both.abs().max()


@pytest.mark.parametrize("mix", [0.0, 0.7, 1.0])
def test_rescaled_answers_are_as_large_as_the_conditional_ones(mix):
    plain, large, rescaled = (
        guided(ClassifierFreeGuidance()),
        guided(ClassifierFreeGuidance(6.0)),
        guided(RescaledGuidance(6.0, mix)),
    )
    expected = mix * plain.flatten(1).std(1) + (1 - mix) * large.flatten(1).std(1)
    torch.testing.assert_close(rescaled.flatten(1).std(1), expected, **FLOAT32)
    torch.testing.assert_close(
        rescaled / rescaled.abs().amax((1, 2, 3), True), large / large.abs().amax((1, 2, 3), True)
    )
    assert torch.equal(guided(RescaledGuidance(1.0, mix)), plain)
    assert not RescaledGuidance(1.0).shifts
    assert RescaledGuidance(6.0).provenance == {"guidance_scale": 6.0, "guidance_rescale": 0.7}


def test_what_cannot_guide_is_refused():
    with refused(
        "guides by a picture beside z_t and by something else, and the model's conditioning is ClassConditioning"
    ):
        InstructionGuidance().check(ClassConditioning(3), CPU)
    with refused("mix 1.5; expected a number from 0 to 1"):
        RescaledGuidance(3.0, 1.5)
    with refused("image_scale inf"):
        InstructionGuidance(float("inf"))
