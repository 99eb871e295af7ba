"""What pictures, boxes and several of them tell a network, and which are refused."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from PIL import Image
from torch import nn

import ldmprobe
from ldmprobe import LatentCodec
from ldmprobe.models.conditioning import OfRows
from tests.helpers import refused, tiny_unet
from tests.models.spatial import SIZE, data, style


def ready(conditioning: ldmprobe.Conditioning, network: nn.Module | None = None) -> tuple:
    """A conditioning that is ready, and a batch."""
    source = data()
    source.setup()
    conditioning.prepare(network or nn.Identity(), source, LatentCodec())
    return conditioning, next(source.reference_batches(8))


def of_digits(conditioning: ldmprobe.Conditioning) -> tuple:
    """A conditioning that is ready for latents of 8×8, its codec, and a batch of images of 32×32."""
    codec = LatentCodec("builtin:digits", scale=1.0)
    source = ldmprobe.ImageData("builtin:digits", image_size=32, check_rows=8)
    source.setup()
    conditioning.prepare(nn.Identity(), source, codec)
    return conditioning, codec, next(source.reference_batches(8))


def test_hidden_pixels_leave_no_trace_in_the_condition():
    """Also through a convolutional autoencoder, and a latent of a cell that the edge cuts is masked."""
    conditioning, codec, batch = of_digits(ldmprobe.Masked(seed=3))
    mask = conditioning.observe(batch)["mask"]
    changed = torch.where(mask.bool(), torch.rand_like(batch["image"]), batch["image"])
    condition = conditioning.from_batch(batch)["concat"]
    assert torch.equal(condition, conditioning.from_batch({**batch, "image": changed})["concat"])
    assert not torch.equal(changed, batch["image"])
    cells = mask.view(8, 8, 4, 8, 4).amax((2, 4))
    assert torch.equal(condition[:, 0], cells.float())  # first the mask, then the latents
    filled = torch.where(mask.bool(), torch.zeros(()), batch["image"])
    torch.testing.assert_close(condition[:, 1:], codec.encode(filled, sample_posterior=False))


def test_without_a_picture_all_channels_are_0_and_with_a_gray_one_they_are_not():
    conditioning, batch = ready(ldmprobe.StyleSource(dropout=0.5))
    gray = {"index": batch["index"].repeat(50), "source": torch.zeros_like(batch["source"]).repeat(50, 1, 1, 1)}
    torch.manual_seed(0)
    trained = conditioning.for_training(gray)["concat"]
    dropped = trained[:, -1, 0, 0] == 0
    assert 140 < int(dropped.sum()) < 260
    assert (trained[dropped] == 0).all()
    assert (conditioning.from_batch(gray)["concat"][:, -1] == 1).all()


def test_small_images_that_are_larger_than_the_latents_are_shrunk_without_aliasing():
    conditioning, _, _ = of_digits(ldmprobe.LowResolution(2, eight_bits=False))
    noise = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    shrunk = Image.fromarray(noise.numpy()).resize((8, 8), Image.Resampling.BICUBIC)
    found = conditioning.picture({"low": noise[None, None]})[0, 0]
    torch.testing.assert_close(found, torch.from_numpy(np.array(shrunk)), rtol=1e-4, atol=1e-5)


def test_the_level_of_noise_that_is_told_is_the_one_applied():
    """The small image has the latents' size, and is joined as it is."""
    conditioning, _, batch = of_digits(ldmprobe.LowResolution(4, noise_levels=300))
    clean = conditioning.from_batch(batch)
    small = torch.nn.functional.avg_pool2d(batch["image"], 4)
    torch.testing.assert_close(clean["concat"], ((small + 1) * 127.5).round() / 127.5 - 1)
    assert torch.equal(ldmprobe.Conditions([conditioning]).enlarged(batch), clean["concat"])
    assert torch.equal(OfRows(conditioning, [batch, batch]).small, clean["concat"].repeat(2, 1, 1, 1))
    assert (clean["class_labels"] == 0).all()  # no noise
    torch.manual_seed(0)
    many = {name: batch[name][:1].expand(4000, *batch[name].shape[1:]) for name in ("image", "index")}
    trained = conditioning.for_training(many)
    levels = trained["class_labels"]
    kept = torch.cat([torch.ones(1), (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)])
    noise = trained["concat"] - kept[levels].sqrt().view(-1, 1, 1, 1) * clean["concat"][:1]
    for lowest, highest in ((0, 1), (100, 110), (290, 301)):
        chosen = (levels >= lowest) & (levels < highest)
        told = float((1 - kept[levels[chosen]]).mean())
        assert float(noise[chosen].var()) == pytest.approx(told, rel=0.06, abs=1e-12)  # of 8,000 draws and more, 1.6 %
    assert (levels.min(), levels.max()) == (0, 300)


def test_several_conditions_are_stacked_in_order_and_swapped_one_by_one():
    parts = [ldmprobe.SemanticMap(8), ldmprobe.Masked(), ldmprobe.ClassConditioning(3)]
    conditioning, batch = ready(ldmprobe.Conditions(parts))
    condition = conditioning.from_batch(batch)
    one_hot, masked = condition["concat"].split([9, 4], dim=1)
    assert torch.equal(one_hot[:, :8].argmax(1), batch["map"].long())
    assert torch.equal(masked, conditioning.parts[1].from_batch(batch)["concat"])
    other = {name: value.roll(1, 0) for name, value in condition.items()}
    swapped = conditioning.swapped(condition, other)
    assert list(swapped) == ["SemanticMap", "Masked", "ClassConditioning"]
    assert torch.equal(swapped["Masked"]["concat"], torch.cat([one_hot, masked.roll(1, 0)], dim=1))
    assert torch.equal(swapped["Masked"]["class_labels"], condition["class_labels"])
    assert torch.equal(swapped["ClassConditioning"]["class_labels"], other["class_labels"])
    assert torch.equal(swapped["ClassConditioning"]["concat"], condition["concat"])


def test_boxes_are_tokens_and_fill_their_areas_and_no_boxes_are_the_null_condition():
    conditioning = ready(ldmprobe.Layout(20, 8, max_boxes=3, filled=2))[0]
    quarter, corner = [0.0, 0.5, 0.5, 1.0, 4.0], [1 - 1.5 / SIZE, 0.0, 1.0, 1 / SIZE, 1.0]
    with torch.no_grad():
        told = conditioning.from_batch({"objects": [torch.tensor([quarter, corner]), torch.empty(0, 5)]})
        null = conditioning.null(1, torch.device("cpu"))
        (quarter_token, corner_token, no_token), empty = told["encoder_hidden_states"]
        expected = torch.zeros(2, SIZE, SIZE)
        expected[:, SIZE // 2 :, : SIZE // 2] = conditioning.fill(quarter_token)[:, None, None]
        expected[:, 0, -2] = conditioning.fill(corner_token) / 2  # a place of which the box covers half
        expected[:, 0, -1] = conditioning.fill(corner_token)
    torch.testing.assert_close(told["concat"][0], expected)
    assert torch.equal(no_token, empty[0])
    torch.testing.assert_close(empty, null["encoder_hidden_states"][0])  # an empty ground is no condition
    assert torch.equal(told["concat"][1:], null["concat"])
    assert not told["concat"][1].any()
    without_areas = ready(ldmprobe.Layout(20, 8, max_boxes=3, filled=0))[0]
    assert list(without_areas.null(2, torch.device("cpu"))) == ["encoder_hidden_states"]


@pytest.mark.parametrize(("precision", "most"), [("bf16-true", 257), ("16-true", 2049)])
def test_more_classes_of_boxes_than_half_precision_tells_apart_are_refused(precision, most):
    half = HalfPrecision(precision)
    objects = [torch.tensor([[0.0, 0.0, 1.0, 1.0, most - 1], [0.0, 0.0, 1.0, 1.0, most - 2]])]
    fitting = ready(ldmprobe.Layout(most, 8))[0]
    batch = half.convert_input({"objects": objects})
    observed = half.convert_input({"observed": fitting.observed({"objects": objects})})
    for given in (batch, observed):
        assert fitting.observed(given)["objects"][0, :2, 4].tolist() == [most - 1, most - 2]
        with half.forward_context(), refused(f"num_classes {most + 1}.* beyond {most - 1}; set .* to bf16-mixed"):
            ldmprobe.Layout(most + 1, 8).from_batch(given)


@pytest.mark.parametrize("number", [-2.0, -1.0, 1.75, 3.0])
def test_a_box_of_no_class_is_refused(number):
    layout = ldmprobe.Layout(3, 8)
    with refused(f"A box has class {number:g}, and Layout num_classes 3, classes 0 to 2"):
        layout.observe({layout.column: [torch.tensor([[0.0, 0.0, 1.0, 1.0, number]])]})


@pytest.mark.parametrize("conditioning", [ldmprobe.Layout(20, 8), ldmprobe.SemanticMap(4)])
def test_what_is_not_made_ready_is_refused_where_its_shape_is_asked_for(conditioning):
    with refused("does not know its shape yet: it is made ready before training"):
        conditioning.null(1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [
        (ldmprobe.SemanticMap(4), r"Row \d+ has class \d in its map, and SemanticMap num_classes 4, classes 0 to 3"),
        (ldmprobe.LowResolution(5), "factor 5, and images of 16×16 cannot be divided by it"),
        (ldmprobe.Layout(20, 8, max_boxes=1), "An image has 2 boxes, and Layout max_boxes 1"),
        (ldmprobe.Layout(3, 8), r"A box has class \d+, and Layout num_classes 3"),
        (ldmprobe.StyleSource("sauce"), "StyleSource reads 'sauce', which the data lacks; add it to the data's `columns`"),
        (
            ldmprobe.Conditions([ldmprobe.LowResolution(4, noise_levels=5), ldmprobe.ClassConditioning(3)]),
            "LowResolution, ClassConditioning, two of which tell the network its class_labels",
        ),
        (
            ldmprobe.Conditions([ldmprobe.Masked(num_rows=8), ldmprobe.SemanticMap(8)]),
            r"parts of different num_rows \(Masked 8, SemanticMap 64\); set them to one number",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_data_is_refused_before_training(conditioning, message):
    with refused(message):
        ready(conditioning)[0].for_samples(torch.arange(1))


def test_a_network_that_does_not_embed_the_levels_of_noise_is_refused():
    for embeds in (None, 5):
        unet = tiny_unet(3, SIZE, in_channels=6, num_class_embeds=embeds)
        with refused(f"num_class_embeds {embeds}, and LowResolution noise_levels 5; expected 6, one for each level"):
            ready(ldmprobe.LowResolution(4, noise_levels=5), unet)


def test_the_class_beside_a_picture_is_that_of_the_same_row():
    """The truth beside a sample is of the class that it was told."""
    conditioning, _ = ready(style())
    source = data()
    source.setup()
    (held_out,) = source.reference_batches(6, held_out=True)
    assert held_out["label"].unique().numel() > 1
    assert torch.equal(conditioning.for_samples(torch.arange(12))["class_labels"], held_out["label"].repeat(2))
    assert torch.equal(conditioning.as_columns(torch.arange(6))["label"], held_out["label"])


@pytest.mark.parametrize(("value", "what"), [(0, "nothing"), (1, "all")])
def test_masks_that_hide_nothing_or_all_are_refused(value, what):
    masks = torch.full((4, 8, 8), value)
    batch = {"image": torch.zeros(4, 1, 8, 8), "mask": masks, "index": torch.arange(4)}
    rows = SimpleNamespace(
        batch_names=tuple(batch), image_shape=(1, 8, 8), reference_batches=lambda number, held_out=False: iter([batch])
    )
    with refused(f"The masks in 'mask' hide {what} of the first 4 images; expected 0 where an image is known"):
        ldmprobe.Masked(column="mask").prepare(nn.Identity(), rows, LatentCodec())


@pytest.mark.parametrize(
    "wrong",
    [
        partial(ldmprobe.SemanticMap, 1),
        partial(ldmprobe.Masked, ["boxes", "holes"]),
        partial(ldmprobe.Masked, share=(0.0, 0.5)),
        partial(ldmprobe.LowResolution, 1),
        partial(ldmprobe.LowResolution, 2, noise_levels=10, sampling_level=11),
        partial(ldmprobe.Sketch, gaps=1.0),
        partial(ldmprobe.Layout, 0, 8),
        partial(ldmprobe.Conditions, []),
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with refused(r" got .*; expected"):
        wrong()
