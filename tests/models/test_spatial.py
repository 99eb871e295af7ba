"""Pictures and boxes that a network is told: trained with from images and from a cache, resumed, read back, shown, dropped."""

from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import nn

import ldmprobe
from ldmprobe import LatentCodec, Sampling, load_model
from ldmprobe.cli import main
from ldmprobe.commands.options import further_columns
from ldmprobe.data.builtin import load_builtin
from ldmprobe.data.in_order import GivenRows
from ldmprobe.data.latent_writer import write_cache
from ldmprobe.inference import given_images, given_rows, real_latents, sample_images, told_rows
from ldmprobe.models.conditioning import OfRows
from ldmprobe.models.restored import Enlarged
from ldmprobe.probing.analyses.samples import side_by_side
from tests.helpers import refused, sd_scheduler, tiny_unet
from tests.training.test_latent_diffusion import trainer as quiet_trainer

SIZE = 16
COLUMNS = [
    ldmprobe.MaskColumn(),
    ldmprobe.MaskColumn("map", "map"),
    ldmprobe.ImageColumn("source", "source"),
    ldmprobe.ObjectsColumn(),
]


BUILTIN = {
    "num_images": 24,
    "size": SIZE,
    "max_shapes": 2,
    "overlap": False,
    "styles": ["filled", "outline", "hatched"],
}


def style() -> ldmprobe.Conditions:
    return ldmprobe.Conditions([ldmprobe.StyleSource(), ldmprobe.ClassConditioning(3)], dropout=0.1)


KINDS = {
    "map": (partial(ldmprobe.SemanticMap, 8), 9, {}),
    "mask": (ldmprobe.Masked, 4, {}),
    "small image": (
        partial(ldmprobe.LowResolution, 4, "blur", noise_levels=20, sampling_level=5),
        3,
        {"num_class_embeds": 21},
    ),
    "sketch": (partial(ldmprobe.Sketch, "mask", gaps=0.2, thickness=2), 2, {}),
    "style": (style, 4, {"num_class_embeds": 4}),
    "layout": (partial(ldmprobe.Layout, 20, 8, 3), 8, {"cross_attention_dim": 8}),
}


def data(**options) -> ldmprobe.ImageData:
    settings = {
        "batch_size": 8,
        "held_out_fraction": 0.25,
        "label_column": "style",
        "columns": COLUMNS,
        "random_flip": True,
    }
    return ldmprobe.ImageData("builtin:shapes", BUILTIN, **{**settings, **options})


def network(channels: int, **more) -> nn.Module:
    torch.manual_seed(0)
    if "cross_attention_dim" not in more:
        return tiny_unet(3, SIZE, in_channels=3 + channels, **more)
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "mid_block_type": None,
    }
    sizes = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2}
    return UNet2DConditionModel(SIZE, 3 + channels, 3, **blocks, **sizes, **more)


class Losses(L.Callback):
    """Keeps losses, and a checkpoint of halfway."""

    def __init__(self, halfway) -> None:
        self.seen: list[float] = []
        self.halfway = halfway

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append(float(outputs["loss"]))
        if trainer.global_step == 2 and not self.halfway.exists():
            trainer.save_checkpoint(self.halfway)


def fit(folder, kind: str, source: ldmprobe.ImageData, ckpt_path=None):
    make, channels, more = KINDS[kind]
    torch.manual_seed(1)
    conditioning = make()
    module = ldmprobe.LatentDiffusion(
        network(channels, **more), scheduler=sd_scheduler(), conditioning=conditioning, ema_decay=0.9
    )
    losses = Losses(folder / "half.ckpt")
    trainer = quiet_trainer(folder, 4, limit_val_batches=0, callbacks=[losses])
    trainer.fit(module, source, ckpt_path=ckpt_path)
    return module, losses.seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_trained_with_resumed_from_a_cache_and_read_back(tmp_path, kind):
    make, channels, more = KINDS[kind]
    module, losses = fit(tmp_path, kind, data())
    write_cache(data(), LatentCodec(), make(), network(channels, **more), tmp_path / "latents")
    cached = data(latents=str(tmp_path / "latents"))
    resumed, rest = fit(tmp_path, kind, cached, str(tmp_path / "half.ckpt"))
    assert losses[2:] == rest
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in module.state_dict().items())

    loaded = load_model(str(tmp_path / "half.ckpt"), "cpu")
    ids = torch.arange(12)
    with torch.no_grad():
        expected, found = (each.conditioning.for_samples(ids) for each in (module, loaded))
        null = loaded.conditioning.null(12, torch.device("cpu"))
    assert expected.keys() == found.keys() == null.keys()
    assert loaded.conditioning.description == module.conditioning.description
    for name, value in expected.items():
        assert null[name].shape == value.shape
        assert torch.equal(value, found[name]) or loaded.conditioning.trained  # and so another one halfway
    picture = next(value for name, value in found.items() if name != "class_labels")
    assert len(picture[:6].flatten(1).unique(dim=0)) == 6  # held-out rows, one for each sample, of which there are six
    assert torch.equal(picture[:6], picture[6:]) or kind == "small image"  # whose noise is the sample's own
    shown = loaded.conditioning.shown(ids)
    assert shown.truth.shape == (12, 3, SIZE, SIZE)
    assert shown.condition.shape[-2] == SIZE
    assert shown.condition.abs().max() <= 1
    assert side_by_side([shown.condition[0], shown.truth[0]]).isfinite().all()
    assert ldmprobe.sample_images(loaded, Sampling(4, 2, batch_size=4)).shape == (4, 3, SIZE, SIZE)

    load_builtin("shapes", **BUILTIN, seed=9).select(range(5)).to_parquet("mine.parquet")
    command = ["sample", str(tmp_path / "half.ckpt"), "--num-samples", "3", "--num-steps", "2", "--device", "cpu"]
    mine = ["--data", "mine.parquet", "--label-column", "style"]
    hole = ["--column", "hole=mask"] if kind == "mask" else []
    assert main([*command, *mine, *hole, "--out", "drawn.png"]) == 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A model of maps."""
    folder = tmp_path_factory.mktemp("map")
    fit(folder, "map", data())
    return str(folder / "half.ckpt")


def refuses(capsys, *command: str) -> str:
    """What the command line says to what it refuses."""
    assert main(list(command)) != 0
    return capsys.readouterr().err


def test_samples_are_told_what_rows_of_ones_own_tell_and_probes_find_their_columns(checkpoint, capsys):
    rows = load_builtin("shapes", **BUILTIN, seed=9)
    rows.rename_column("map", "classes").to_parquet("mine.parquet")
    model = load_model(checkpoint, "cpu")
    given = given_rows(model, "mine.parquet", "image", [ldmprobe.MaskColumn("classes", "map")], 5, 2)
    images, conditioning = given.images, told_rows(model, given)
    told = conditioning.for_samples(torch.arange(10))["concat"]
    expected = torch.from_numpy(np.stack([np.array(each) for each in rows["map"][:5]])).long()
    assert torch.equal(told[:, :8].argmax(1), expected.repeat(2, 1, 1))  # in their order, in turn
    assert images.shape == (5, 3, SIZE, SIZE)

    arguments = ["--data", "mine.parquet", "--num-samples", "8", "--num-steps", "2", "--device", "cpu"]
    probe = ("probe", checkpoint, *arguments, "--out", "probed")
    assert "There is no column 'map'; the dataset has 'image', " in refuses(capsys, *probe)
    told = refuses(capsys, *probe, "--column", "layout=classes")
    assert "--column names 'layout', of which the model is told nothing; it reads map" in told
    assert "got 'classes', expected NAME=COLUMN" in refuses(capsys, *probe, "--column", "classes")
    columns = further_columns(Namespace(column=[("map", "classes")]), model.conditioning)
    held_out = real_latents(model, "mine.parquet", columns=columns).held_out
    assert torch.equal(held_out.condition["concat"][:, :8].sum(1), torch.ones(len(held_out.latents), SIZE, SIZE))


def test_an_image_is_changed_as_much_as_a_strength_says(checkpoint, capsys):
    load_builtin("shapes", **BUILTIN)[0]["image"].save("one.png")
    command = ["sample", checkpoint, "--num-samples", "2", "--num-steps", "3", "--device", "cpu"]
    changed = [*command, "--image", "one.png", "--strength"]
    assert main([*changed, "7.0", "--out", "little.png"]) == 0
    assert main([*changed, "-5.3", "--out", "much.png"]) == 0
    original = np.asarray(Image.open("one.png"), dtype=float)
    little, much = (
        float(np.abs(np.asarray(Image.open(name), dtype=float)[:, :SIZE] - original).mean())
        for name in ("little.png", "much.png")
    )
    assert little < 12  # of 255
    assert much > 30
    missing = refuses(capsys, *command, "--image", "one.png", "--out", "s.png")
    assert "--image is an image to change, and --strength says how much, as a log-SNR" in missing
    missing = refuses(capsys, *command, "--strength", "0", "--out", "s.png")
    assert "--strength is for images; give --image, or --data" in missing
    missing = refuses(capsys, *command, "--image", "none.png", "--strength", "0", "--out", "s.png")
    assert "none.png cannot be read: No such file or directory" in missing


def test_an_image_is_filled_in_or_enlarged_by_a_model_that_was_not_trained_for_it(checkpoint, capsys):
    image = load_builtin("shapes", **BUILTIN)[0]["image"]
    image.save("whole.png")
    image.resize((SIZE // 4, SIZE // 4), Image.Resampling.BOX).save("small.png")
    hole = np.zeros((SIZE, SIZE), np.uint8)
    hole[:, SIZE // 2 :] = 255
    Image.fromarray(hole).save("hole.png")
    command = ["sample", checkpoint, "--num-samples", "1", "--num-steps", "8", "--grid", "log-snr", "--device", "cpu"]
    assert main([*command, "--image", "whole.png", "--hole", "hole.png", "--out", "filled.png"]) == 0
    assert main([*command, "--image", "small.png", "--enlarge", "4", "--out", "large.png"]) == 0
    assert "--match-color puts that right" in capsys.readouterr().err
    off = np.abs(np.subtract(*(np.asarray(Image.open(name), dtype=float) for name in ("filled.png", "whole.png"))))
    off = off.mean((0, 2))
    assert off[: SIZE // 2].mean() < 8 < off[SIZE // 2 :].mean()  # of 255
    model = load_model(checkpoint, "cpu")
    small = given_images(model, [Path("small.png")], 4)
    guidance = ldmprobe.MeasurementGuidance(ldmprobe.BlockMeans(4), y=small)
    large = sample_images(model, Sampling(1, 8, grid=ldmprobe.LogSNRGrid(), guidance=guidance))
    assert float((ldmprobe.BlockMeans(4).apply(large, [0]) - small).abs().mean()) < 0.06  # τ is 0.05
    told = refuses(capsys, *command, "--image", "small.png", "--enlarge", "4", "--strength", "0", "--out", "s.png")
    assert "--enlarge is of small images, which have no --hole and no --strength" in told
    matched = ["--enlarge", "4", "--match-color", "--out", "matched.png"]
    assert main([*command, "--image", "small.png", *matched]) == 0
    colors = [np.asarray(Image.open(f"{name}.png"), dtype=float).mean((0, 1)) for name in ("small", "matched", "large")]
    assert (np.abs(colors[1] - colors[0]) < np.abs(colors[2] - colors[0])).all()
    restored, muted = Enlarged(small), 0.1 * large
    assert restored.color_error(muted) == pytest.approx(
        float((muted.mean((2, 3)) - small.mean((2, 3))).square().mean().sqrt())
    )
    assert restored.color_error(restored.matched(muted)) < 1e-6
    told = refuses(capsys, *command, "--match-color", "--out", "s.png")
    assert "--match-color takes the colors of small images, and none are given" in told
    told = refuses(capsys, *command, "--image", "small.png", "--enlarge", "3", "--out", "s.png")
    assert "factor 3, and the model's images are 16×16" in told


def test_a_model_of_holes_is_told_that_of_an_image_and_known_pixels_are_put_back(checkpoint, tmp_path, capsys):
    fit(tmp_path, "mask", data())
    image = load_builtin("shapes", **BUILTIN)[0]["image"]
    image.save("known.png")
    hole = np.zeros((SIZE, SIZE), np.uint8)
    hole[4:12, 6:] = 255
    Image.fromarray(hole).save("its_hole.png")
    model = load_model(str(tmp_path / "half.ckpt"), "cpu")
    assert model.conditioning.hole_column == "hole"
    rows = GivenRows.of(given_images(model, [Path("known.png")])).with_hole("hole", torch.from_numpy(hole))
    told = told_rows(model, rows)
    assert torch.equal(told.for_samples(torch.arange(2))["concat"][1, 0], torch.from_numpy(hole / 255).float())
    command = ["sample", str(tmp_path / "half.ckpt"), "--num-samples", "1", "--num-steps", "2", "--device", "cpu"]
    given = ["--image", "known.png", "--hole", "its_hole.png"]
    assert main([*command, *given, "--out", "plain.png"]) == 0
    assert "--paste 0 puts that right" in capsys.readouterr().err
    assert main([*command, *given, "--paste", "0", "--out", "pasted.png"]) == 0
    plain, pasted, original = (np.asarray(Image.open(name)) for name in ("plain.png", "pasted.png", "known.png"))
    assert (pasted[hole == 0] == original[hole == 0]).all()
    assert (pasted[hole != 0] == plain[hole != 0]).all()
    assert (plain[hole == 0] != original[hole == 0]).any()
    nothing = refuses(capsys, "sample", checkpoint, "--paste", "0", "--out", "s.png")
    assert "--paste puts known pixels back, and none are known; give --hole" in nothing


# --- what is told ----------------------------------------------------------------------------------------------------


def ready(conditioning: ldmprobe.Conditioning, codec: LatentCodec | None = None, **options) -> tuple:
    """A conditioning that is ready, and a batch."""
    source = data(**options)
    source.setup()
    conditioning.prepare(nn.Identity(), source, codec or LatentCodec())
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
    condition, other = (
        conditioning.from_batch({**batch, "image": image})["concat"] for image in (batch["image"], changed)
    )
    assert torch.equal(condition, other)
    assert not torch.equal(changed, batch["image"])
    cells = mask.view(8, 8, 4, 8, 4).amax((2, 4))
    assert torch.equal(condition[:, 0], cells.float())  # first the mask, then the latents
    filled = torch.where(mask.bool(), torch.zeros(()), batch["image"])
    torch.testing.assert_close(condition[:, 1:], codec.encode(filled, sample_posterior=False))


def test_without_a_picture_all_channels_are_0_and_with_a_gray_one_they_are_not():
    conditioning, batch = ready(ldmprobe.StyleSource(dropout=0.5))
    gray = {**batch, "source": torch.zeros_like(batch["source"])}
    torch.manual_seed(0)
    trained = conditioning.for_training(
        {name: value.repeat(50, *[1] * (value.ndim - 1)) for name, value in gray.items() if name in ("source", "index")}
    )["concat"]
    dropped = trained[:, -1, 0, 0] == 0
    assert 140 < int(dropped.sum()) < 260
    assert (trained[dropped] == 0).all()
    assert (conditioning.from_batch(gray)["concat"][:, -1] == 1).all()


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
    trained = conditioning.for_training(
        {name: batch[name][:1].expand(4000, *batch[name].shape[1:]) for name in ("image", "index")}
    )
    levels = trained["class_labels"]
    kept = torch.cat([torch.ones(1), (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)])
    noise = trained["concat"] - kept[levels].sqrt().view(-1, 1, 1, 1) * clean["concat"][:1]
    for lowest, highest in ((0, 1), (100, 110), (290, 301)):
        chosen = (levels >= lowest) & (levels < highest)
        told = float((1 - kept[levels[chosen]]).mean())
        assert float(noise[chosen].var()) == pytest.approx(told, rel=0.06, abs=1e-12)  # of 8,000 draws and more, 1.6 %
    assert (levels.min(), levels.max()) == (0, 300)


def test_several_conditions_are_stacked_in_order_and_swapped_one_by_one():
    conditioning, batch = ready(
        ldmprobe.Conditions([ldmprobe.SemanticMap(8), ldmprobe.Masked(), ldmprobe.ClassConditioning(3)])
    )
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
    assert torch.equal(empty, null["encoder_hidden_states"][0])  # an empty ground is no condition
    assert torch.equal(told["concat"][1:], null["concat"])
    assert not told["concat"][1].any()


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [
        (ldmprobe.SemanticMap(4), r"Row \d+ has class \d in its map, and SemanticMap num_classes 4, classes 0 to 3"),
        (ldmprobe.LowResolution(5), "factor 5, and images of 16×16 cannot be divided by it"),
        (ldmprobe.Layout(20, 8, max_boxes=1), "An image has 2 boxes, and Layout max_boxes 1"),
        (ldmprobe.Layout(3, 8), r"A box has class \d+, and Layout num_classes 3"),
        (
            ldmprobe.StyleSource("sauce"),
            "StyleSource reads 'sauce', which the data lacks; add it to the data's `columns`",
        ),
        (
            ldmprobe.Conditions([ldmprobe.LowResolution(4, noise_levels=5), ldmprobe.ClassConditioning(3)]),
            "LowResolution, ClassConditioning, two of which tell the network its class_labels",
        ),
        (
            ldmprobe.Conditions([ldmprobe.Masked(num_rows=8), ldmprobe.SemanticMap(8)]),
            r"parts of different num_rows \(Masked 8, SemanticMap 64\); set them to one number",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_training(conditioning, message):
    with refused(message):
        ready(conditioning)[0].for_samples(torch.arange(1))


def test_a_network_that_does_not_embed_the_levels_of_noise_is_refused():
    source = data()
    source.setup()
    for embeds in (None, 5):
        unet = UNet2DConditionModel(
            SIZE,
            6,
            3,
            num_class_embeds=embeds,
            block_out_channels=(8,),
            norm_num_groups=4,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            mid_block_type=None,
        )
        with refused(f"num_class_embeds {embeds}, and LowResolution noise_levels 5; expected 6, one for each level"):
            ldmprobe.LowResolution(4, noise_levels=5).prepare(unet, source, LatentCodec())


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
