"""``ldmprobe sample`` and ``probe`` with rows or images of one's own, which the model is told or which are changed."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ldmprobe
from ldmprobe import Sampling, cascaded, load_model
from ldmprobe.cli import main
from ldmprobe.commands.options import further_columns
from ldmprobe.data.builtin import load_builtin
from ldmprobe.data.in_order import GivenRows
from ldmprobe.diffusion.noise import sample_noise
from ldmprobe.inference import (
    given_images,
    given_rows,
    image_grid,
    real_latents,
    sample_images,
    told_rows,
    told_small,
)
from ldmprobe.models.restored import Enlarged
from tests.helpers import refuses
from tests.models.spatial import BUILTIN, SIZE, data, fit, fit_told, network


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A model of maps."""
    folder = tmp_path_factory.mktemp("map")
    fit(folder, "map", data())
    return str(folder / "half.ckpt")


@pytest.fixture(scope="module")
def told_nothing(tmp_path_factory) -> str:
    """A model of images alone."""
    folder = tmp_path_factory.mktemp("alone")
    fit_told(folder, ldmprobe.Unconditional(), network(0), data())
    return str(folder / "half.ckpt")


@pytest.fixture(scope="module")
def upsampler(tmp_path_factory) -> str:
    """A model of small images."""
    folder = tmp_path_factory.mktemp("small")
    fit(folder, "small image", data())
    return str(folder / "half.ckpt")


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
    refuses(capsys, probe, "There is no column 'map'; the dataset has 'image', ")
    error = refuses(capsys, [*probe, "--column", "layout=classes"])
    assert "--column names 'layout', of which the model is told nothing; it reads map" in error
    refuses(capsys, [*probe, "--column", "classes"], "got 'classes', expected NAME=COLUMN")
    columns = further_columns(Namespace(column=[("map", "classes")]), model.conditioning)
    held_out = real_latents(model, "mine.parquet", columns=columns).held_out
    told = model.conditioning.for_samples(torch.arange(len(held_out.latents)))["concat"]
    assert torch.equal(told, held_out.condition["concat"])  # and not that of the checkpoint's rows
    assert torch.equal(held_out.condition["concat"][:, :8].sum(1), torch.ones(len(held_out.latents), SIZE, SIZE))


def test_an_image_is_changed_as_much_as_a_strength_says(told_nothing, capsys):
    load_builtin("shapes", **BUILTIN)[0]["image"].save("one.png")
    command = ["sample", told_nothing, "--num-samples", "2", "--num-steps", "3", "--device", "cpu"]
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
    error = refuses(capsys, [*command, "--image", "one.png", "--out", "s.png"])
    assert "--image is an image to change, and --strength says how much, as a log-SNR" in error
    error = refuses(capsys, [*command, "--strength", "0", "--out", "s.png"])
    assert "--strength is for images; give --image, or --data" in error
    error = refuses(capsys, [*command, "--image", "none.png", "--strength", "0", "--out", "s.png"])
    assert "none.png cannot be read: No such file or directory" in error


def test_an_image_is_filled_in_or_enlarged_by_a_model_that_was_not_trained_for_it(told_nothing, capsys):
    image = load_builtin("shapes", **BUILTIN)[0]["image"]
    image.save("whole.png")
    image.resize((SIZE // 4, SIZE // 4), Image.Resampling.BOX).save("small.png")
    hole = np.zeros((SIZE, SIZE), np.uint8)
    hole[:, SIZE // 2 :] = 255
    Image.fromarray(hole).save("hole.png")
    command = ["sample", told_nothing, "--num-samples", "1", "--num-steps", "8", "--grid", "log-snr", "--device", "cpu"]
    assert main([*command, "--image", "whole.png", "--hole", "hole.png", "--out", "filled.png"]) == 0
    assert main([*command, "--image", "small.png", "--enlarge", "4", "--out", "large.png"]) == 0
    assert "--match-color puts that right" in capsys.readouterr().err
    off = np.abs(np.subtract(*(np.asarray(Image.open(name), dtype=float) for name in ("filled.png", "whole.png"))))
    off = off.mean((0, 2))
    assert off[: SIZE // 2].mean() < 8 < off[SIZE // 2 :].mean()  # of 255
    model = load_model(told_nothing, "cpu")
    small = given_images(model, [Path("small.png")], 4)
    guidance = ldmprobe.MeasurementGuidance(ldmprobe.BlockMeans(4), y=small)
    large = sample_images(model, Sampling(1, 8, grid=ldmprobe.LogSNRGrid(), guidance=guidance))
    assert float((ldmprobe.BlockMeans(4).apply(large, [0]) - small).abs().mean()) < 0.06  # τ is 0.05
    error = refuses(capsys, [*command, "--image", "small.png", "--enlarge", "4", "--strength", "0", "--out", "s.png"])
    assert "--enlarge is of small images, which have no --hole and no --strength" in error
    matched = ["--enlarge", "4", "--match-color", "--out", "matched.png"]
    assert main([*command, "--image", "small.png", *matched]) == 0
    colors = [np.asarray(Image.open(f"{name}.png"), dtype=float).mean((0, 1)) for name in ("small", "matched", "large")]
    assert (np.abs(colors[1] - colors[0]) < np.abs(colors[2] - colors[0])).all()
    restored, muted = Enlarged(small), 0.1 * large
    off = (muted.mean((2, 3)) - small.mean((2, 3))).square().mean().sqrt()
    assert restored.color_error(muted) == pytest.approx(float(off))
    assert restored.color_error(restored.matched(muted)) < 1e-6
    error = refuses(capsys, [*command, "--match-color", "--out", "s.png"])
    assert "--match-color takes the colors of small images, and none are given" in error
    error = refuses(capsys, [*command, "--image", "small.png", "--enlarge", "3", "--out", "s.png"])
    assert "factor 3, and the model's images are 16×16" in error


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
    error = refuses(capsys, ["sample", checkpoint, "--paste", "0", "--out", "s.png"])
    assert "--paste puts known pixels back, and none are given; give --image with --hole" in error
    error = refuses(capsys, [*command, *given, "--data", "mine.parquet", "--out", "s.png"])
    assert "The model is told --image itself, and no row of --data; leave out one of them." in error
    error = refuses(capsys, [*command, "--image", "known.png", "--strength", "0", "--out", "s.png"])
    assert "told Masked of rows of data, of which --image says nothing; give --data, too" in error


def test_a_model_of_small_images_is_told_those_of_image_and_of_no_row(upsampler, capsys):
    rows = load_builtin("shapes", **BUILTIN, seed=9)
    for number in (0, 1):
        small = rows[number]["image"].resize((SIZE // 4, SIZE // 4), Image.Resampling.BOX)
        small.save(f"small{number}.png")
    files = [Path("small0.png"), Path("small1.png")]
    model = load_model(upsampler, "cpu")
    small = given_images(model, files, 4)
    told = told_small(model, small)
    kept = model.conditioning.alpha_bar[5]
    ids = torch.arange(2)
    noise = sample_noise([0, 1], (3, SIZE // 4, SIZE // 4), seed=0, stream=8)
    expected = nn.functional.interpolate(kept.sqrt() * small + (1 - kept).sqrt() * noise, size=SIZE, mode="bicubic")
    condition = told.for_samples(ids)
    torch.testing.assert_close(condition["concat"], expected)
    assert condition["class_labels"].tolist() == [5, 5]
    cascade = cascaded(replace(model, latent_shape=(3, 4, 4), conditioning=ldmprobe.Unconditional()), model, small)
    assert torch.equal(cascade.conditioning.for_samples(ids)["concat"], condition["concat"])

    command = ["sample", upsampler, "--num-samples", "2", "--num-steps", "2", "--device", "cpu"]
    given = ["--image", *map(str, files), "--enlarge"]
    assert main([*command, *given, "4", "--out", "enlarged.png"]) == 0
    assert "--match-color puts that right" in capsys.readouterr().err
    drawn = image_grid(sample_images(replace(model, conditioning=told), Sampling(2, 2)), 10)
    assert np.array_equal(np.asarray(Image.open("enlarged.png")), drawn)
    error = refuses(capsys, [*command, *given, "2", "--out", "s.png"])
    assert "told small images of 4×4, and those of --image become 8×8; give --enlarge 4." in error
    error = refuses(capsys, [*command, *given, "4", "--data", "mine.parquet", "--out", "s.png"])
    assert "The model is told --image itself, and no row of --data; leave out one of them." in error
    error = refuses(capsys, [*command, "--data", "mine.parquet", "--enlarge", "4", "--out", "s.png"])
    assert "The model is told the small images of --data itself; leave out --enlarge." in error


@pytest.mark.parametrize("change", [["--strength", "0"], ["--enlarge", "4"], ["--hole", "small.png"]])
def test_images_are_not_changed_by_what_the_rows_of_a_checkpoint_say(checkpoint, change, capsys):
    error = refuses(capsys, ["sample", checkpoint, "--image", "small.png", *change, "--out", "s.png"])
    assert "The model is told SemanticMap of rows of data, of which --image says nothing; give --data, too" in error
    load_builtin("shapes", **BUILTIN).to_parquet("maps.parquet")
    few = ["--num-samples", "1", "--num-steps", "1", "--device", "cpu", "--out", f"{change[0][2:]}.png"]
    half = Image.new("L", (SIZE, SIZE))
    half.paste(255, (0, 0, SIZE // 2, SIZE))
    half.save("small.png")
    assert main(["sample", checkpoint, "--image", "small.png", *change, "--data", "maps.parquet", *few]) == 0
