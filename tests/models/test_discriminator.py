"""PatchDiscriminator: how much of an image a logit sees."""

import pytest
import torch

from ldmprobe import PatchDiscriminator
from ldmprobe.models.discriminator import fitting_layers, receptive_field
from tests.helpers import refused


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_a_logit_sees_its_receptive_field(layers):
    discriminator = PatchDiscriminator(channels=1, layers=layers, width=4, norm="none")
    images = torch.rand(1, 1, 160, 160, requires_grad=True)
    logits = discriminator(images)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], images)
    rows = gradient[0, 0].abs().sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == receptive_field(layers)


def test_the_layers_are_chosen_by_the_image_and_no_sample_changes_another():
    assert [fitting_layers(size) for size in (16, 32, 64, 128, 256)] == [1, 1, 1, 2, 3]
    assert [receptive_field(layers) for layers in (1, 2, 3)] == [16, 34, 70]
    discriminator = PatchDiscriminator(channels=3, image_size=32, width=8)
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(discriminator(images)[:1], discriminator(images[:1]))
    with refused("layers 3, with which a logit sees 70 pixels, for images of 32"):
        PatchDiscriminator(channels=3, image_size=32, layers=3)
    with refused("give the image_size"):
        PatchDiscriminator(channels=3)


def test_spectral_norm_bounds_the_weights():
    discriminator = PatchDiscriminator(channels=3, image_size=32, width=8, norm="spectral").train()
    for _ in range(30):
        discriminator(torch.rand(1, 3, 32, 32))
    weight = discriminator.body[0].weight.flatten(1)
    assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1, abs=1e-2)
