"""Guidances beside the plain one are equal to it where they should be."""

import math

import pytest
import torch
from torch import Tensor, nn

from ldmprobe import (
    Asked,
    BlockMeans,
    ClassConditioning,
    ClassifierFreeGuidance,
    Conditioning,
    Conditions,
    DiffusionModel,
    InstructionGuidance,
    IntervalGuidance,
    Masked,
    MeasurementGuidance,
    RescaledGuidance,
    Sampling,
)
from ldmprobe.diffusion.samplers import Denoise
from ldmprobe.models.conditioning.style_source import StyleSource
from ldmprobe.models.guidance import Guidance
from tests.helpers import FLOAT32, refused, sd_scheduler


def conditioning() -> Conditions:
    source = StyleSource()
    source.restore({"image_size": [4, 4], "latent_size": [4, 4], "channels": 1})
    return Conditions([source, ClassConditioning(3)])


def model(conditioning: Conditioning, network: nn.Module | None = None) -> DiffusionModel:
    return DiffusionModel(network or Told(), sd_scheduler(), (1, 4, 4), conditioning=conditioning)


def answer(z_t: Tensor, asked: Asked, condition: dict[str, Tensor]) -> Tensor:
    """No linear function of what is told."""
    return (z_t + condition["concat"][:, :1]).sin() * (1 + condition["class_labels"].view(-1, 1, 1, 1))


def guided(guidance: Guidance) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    z_t, picture = (torch.randn(5, n, 4, 4, generator=generator) for n in (1, 2))
    condition = {"concat": picture, "class_labels": torch.tensor([0, 1, 2, 0, 1])}
    return guidance.guide(answer, model(conditioning()))(z_t, Asked(torch.zeros(5), 0.6, 0.8), condition)


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
    shapes = [answers / answers.abs().amax((1, 2, 3), True) for answers in (rescaled, large)]
    torch.testing.assert_close(*shapes)
    assert torch.equal(guided(RescaledGuidance(1.0, mix)), plain)
    assert not RescaledGuidance(1.0).shifts
    assert RescaledGuidance(6.0).provenance == {"guidance_scale": 6.0, "guidance_rescale": 0.7}


class Told(nn.Module):
    """Answers with a function of the class, and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.asked = nn.Parameter(torch.ones(())), 0

    def forward(self, z_t, t, condition):
        self.asked += 1
        return (self.scale * z_t + condition["class_labels"].view(-1, 1, 1, 1)).sin()


@torch.no_grad()
def test_an_interval_is_guided_within_and_asked_once_elsewhere():
    network = Told()
    told = model(ClassConditioning(3), network)
    condition, z_t = told.conditioning.for_samples(torch.arange(5)), torch.randn(5, 1, 4, 4)
    plain, whole, interval = (
        told.predictor(condition, 5, guidance)
        for guidance in (None, ClassifierFreeGuidance(3.0), IntervalGuidance(3.0, -2.0, 1.0))
    )
    for log_snr, is_guided in ((-2.1, False), (-1.9, True), (0.9, True), (1.1, False), (-math.inf, False)):
        question = Denoise(math.exp(log_snr / 2), 1.0, 500.0)
        network.asked = 0
        found = interval(z_t, question)
        assert network.asked == 1 + is_guided, log_snr
        assert torch.equal(found, (whole if is_guided else plain)(z_t, question))
    around = MeasurementGuidance(BlockMeans(2), guidance=IntervalGuidance(3.0, -2.0, 1.0))
    assert [around.at(log_snr).guidance.shifts for log_snr in (-2.1, 0.0, 1.1)] == [False, True, False]
    guidance = IntervalGuidance(RescaledGuidance(3.0), -2.0, 1.0)
    assert guidance.shifts
    assert not IntervalGuidance(1.0, -2.0, 1.0).shifts
    assert Sampling(guidance=guidance).guidance_in_words.endswith("guidance interval [-2.0, 1.0]")
    with refused("min_log_snr 1, max_log_snr -2; expected two finite log-SNRs"):
        IntervalGuidance(3.0, 1.0, -2.0)
    with refused(r"no guidance at any of the levels.*guidance interval \[30.0, 40.0\].*Give a wider interval"):
        Sampling(4, 5, guidance=IntervalGuidance(3.0, 30.0, 40.0)).levels(told)


def test_a_model_that_was_never_without_its_condition_is_not_guided():
    """Its checkpoint knows, and a finetune of a model that was keeps what that knows."""
    never, at_once = ClassConditioning(3, dropout=0.0), Conditions([Masked(), ClassConditioning(3)], dropout=0.1)
    loaded = ClassConditioning(3)
    loaded.restore(never.run_spec)
    partly = Conditions([Masked(), ClassConditioning(3)])  # Masked is never dropped
    finetuned = ClassConditioning(3).for_finetuning(0.0, None, False)
    for conditioning in (never, loaded):
        for guidance in (ClassifierFreeGuidance(2.0), IntervalGuidance(2.0, -1.0, 1.0), RescaledGuidance(2.0)):
            with refused(r"trained with dropout 0 of its condition \(ClassConditioning\).* train with a `dropout`"):
                guidance.check(model(conditioning))
        ClassifierFreeGuidance(1.0).check(model(conditioning))
    assert [each.knows_null for each in (at_once, partly, finetuned)] == [True, True, True]


def test_guidance_is_by_those_parts_that_a_model_was_also_trained_without():
    masked = Masked()
    masked.restore({"image_size": [4, 4], "latent_size": [4, 4], "channels": 1})
    always, at_once = (Conditions([masked, ClassConditioning(3)], dropout) for dropout in (0.0, 0.1))
    condition = {"concat": torch.randn(5, 1, 4, 4), "class_labels": torch.tensor([0, 1, 2, 0, 1])}
    none = always.without(torch.device("cpu"))(condition)
    assert torch.equal(none["concat"], condition["concat"])
    assert (none["class_labels"] == 3).all()
    assert (at_once.without(torch.device("cpu"))(condition)["concat"] == 0).all()
    loaded = Conditions([masked, ClassConditioning(3)])
    loaded.restore(at_once.run_spec)  # a checkpoint's
    assert (loaded.without(torch.device("cpu"))(condition)["concat"] == 0).all()
    masked.rows.columns, masked.for_samples = ("mask",), lambda ids: {"concat": condition["concat"][: len(ids)]}
    masked.rows.register_buffer("mask", torch.ones(1))
    with refused(r"InstructionGuidance asks the model without its concat, too, .* never trained without \(Masked"):
        InstructionGuidance().check(model(always))


def test_what_cannot_guide_is_refused():
    with refused("by a picture beside z_t and by something else, and .* conditioning is ClassConditioning"):
        InstructionGuidance().check(model(ClassConditioning(3)))
    with refused("mix 1.5; expected a number from 0 to 1"):
        RescaledGuidance(3.0, 1.5)
    with refused("image_scale inf"):
        InstructionGuidance(float("inf"))
