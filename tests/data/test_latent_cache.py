"""A cache of latents as training reads it: the same batches, or a refusal that says what to do."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features, Image
from PIL import Image as PILImage

from ldmprobe import ImageData, LatentCodec, Unconditional
from ldmprobe.data.identity import DataIdentity, known_rows
from ldmprobe.data.image_files import ImageFiles
from ldmprobe.data.latent_cache import SPLITS, LatentCache, cache_key
from ldmprobe.data.latent_writer import write_cache
from ldmprobe.data.sources import choose_splits
from tests.helpers import ready, refused, row_reader, tiny_unet

SETTINGS = {"label_column": "label", "caption_column": "caption", "batch_size": 4}


def shapes(folder: Path | None = None, seed: int = 0, **options) -> ImageData:
    kwargs = {"num_images": 30, "size": 16, "seed": seed}
    return ImageData(
        "builtin:shapes", kwargs, latents=None if folder is None else str(folder), **{**SETTINGS, **options}
    )


def write(folder: Path, data: ImageData | None = None, codec: LatentCodec | None = None, **options) -> Path:
    """Of the images themselves, unless there is a codec; some files have a single row."""
    options = {"rows_per_shard": 13, "batch_size": 5, **options}
    write_cache(data or shapes(), codec or LatentCodec(), Unconditional(), tiny_unet(), folder, **options)
    return folder


def assert_same_batches(latents: list[dict], images: list[dict]) -> None:
    for latent, image in zip(latents, images, strict=True):
        assert torch.equal(latent.pop("latent"), image.pop("image"))
        assert latent.keys() == image.keys() >= {"index", "label"}
        assert latent.get("caption") == image.get("caption")
        assert all(torch.equal(latent[name], image[name]) for name in ("index", "label"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("latents") / "shapes")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_sees_the_same_rows_in_the_same_order(folder, num_workers):
    latents, images = ready(shapes(folder, num_workers=num_workers)), ready(shapes())
    assert_same_batches(
        list(islice(latents.train_dataloader(), 20)), list(islice(images.train_dataloader(), 20))
    )  # three passes
    assert_same_batches(list(latents.val_dataloader()), list(images.val_dataloader()))


@pytest.mark.parametrize("held_out", [False, True])
def test_probes_see_the_same_images(folder, held_out):
    latents, images = ready(shapes(folder)), ready(shapes())
    assert_same_batches(list(latents.reference_batches(20, held_out)), list(images.reference_batches(20, held_out)))
    (decoded,), (expected,) = latents.reference_images(20, held_out), images.reference_batches(20, held_out)
    assert torch.equal(decoded["image"], expected["image"])


def test_the_data_says_of_itself_what_it_says_without_a_cache(folder):
    latents, images = ready(shapes(folder)), ready(shapes())
    for name in ("image_shape", "num_classes", "class_names"):
        assert getattr(latents, name) == getattr(images, name)


def test_images_are_flipped_when_they_would_be(tmp_path):
    options = {"random_flip": True, "caption_column": None}  # captions tell left from right
    folder = write(tmp_path, shapes(**options))
    latents, images = ready(shapes(folder, **options)), ready(shapes(**options))
    plain = list(islice(ready(shapes(caption_column=None)).train_dataloader(), 20))
    flipped = list(islice(images.train_dataloader(), 20))
    assert (
        0.3
        < sum(float((a["image"] != b["image"]).flatten(1).any(1).sum()) for a, b in zip(plain, flipped, strict=True))
        / 80
        < 0.7
    )
    assert_same_batches(list(islice(latents.train_dataloader(), 20)), flipped)
    assert_same_batches(list(latents.reference_batches(30)), list(images.reference_batches(30)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_latents_can_be_kept_in_half_precision(tmp_path, dtype):
    latents, images = ready(shapes(write(tmp_path, dtype=dtype))), ready(shapes())
    for latent, image in zip(latents.val_dataloader(), images.val_dataloader(), strict=True):
        assert latent["latent"].dtype == getattr(torch, dtype)
        assert torch.equal(LatentCodec().latents(latent), image["image"].to(latent["latent"].dtype).float())


# --- what is refused, before training ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"seed": 1}, "data.train.images are others"),
        ({"held_out_fraction": 0.2}, "data.train.number of rows is 27, this configuration's is 24"),
        ({"label_column": None}, r"data.train.label is [0-9a-f]+…, this configuration's is None"),
        ({"image_size": 8}, "transforms.size is None, this configuration's is 8"),
        ({"resize": "squash"}, "transforms.resize is crop, this configuration's is squash"),
        ({"random_flip": True}, "transforms.random_flip is False, this configuration's is True"),
    ],
)
def test_a_cache_of_other_data_is_refused_by_what_differs(folder, options, difference):
    data = ready(shapes(folder, **options))
    with refused(f"holds latents of something else: its {difference}.*--out ANOTHER_FOLDER"):
        data.use_latents(LatentCodec(), Unconditional())


@pytest.mark.parametrize(
    ("codec", "difference"),
    [
        (LatentCodec("builtin:digits"), "codec.class_name is AutoencoderKL, this configuration's is NoneType"),
        (LatentCodec("builtin:digits", sample_posterior=True), "latents.kind is moments, this configuration's is latent"),
        ("other weights", "codec.weights are others"),
    ],
    ids=["class", "posterior", "weights"],
)  # fmt: skip
def test_a_cache_of_another_codec_is_refused_by_what_differs(tmp_path, codec, difference):
    gray = {"image_size": 32, "channels": 1}
    here = LatentCodec() if "class" in difference else LatentCodec("builtin:digits")
    if codec == "other weights":
        codec = LatentCodec("builtin:digits")
        autoencoder = codec.autoencoder
        next(autoencoder.parameters()).data[0] += 1e-3
        codec = LatentCodec(autoencoder)
    data = ready(shapes(write(tmp_path, shapes(**gray), codec), **gray))
    with refused(f"holds latents of something else: its {difference}"):
        data.use_latents(here, Unconditional())


def _images(kind: str, folder: Path, changed: int | None) -> Dataset:
    """3,000 small images, of which one is a little different from what it is otherwise."""
    images: list = []
    for i in range(3000):
        if kind == "arrays":
            images.append(np.full((1, 2, 2), i + 0.5 * (i == changed), np.float32))
            continue
        path = folder / f"{i % 50}{'c' if i == changed else ''}.png"
        if not path.exists():
            PILImage.new("L", (70 if i == changed else 6, 6), i % 50).save(path)
        images.append(
            {"bytes": path.read_bytes(), "path": None} if kind == "bytes" else {"bytes": None, "path": str(path)}
        )
    features = Features({"image": Array3D((1, 2, 2), "float32") if kind == "arrays" else Image(decode=False)})
    return Dataset.from_dict({"image": images}, features=features)


def _key(held_out: str | None = None, columns: tuple = ("image", None, None), **splits: Dataset) -> dict[str, Any]:
    column, label, caption = columns
    reader = row_reader(label, caption, column, files=ImageFiles(("/",)))
    parts = choose_splits(splits, "train", held_out, 0.1, 0, reader.image, reader.files)
    identity = DataIdentity(*(known_rows(part, reader.columns, reader.files) for part in parts))
    rows = dict(zip(SPLITS, parts, strict=True))
    return cache_key(identity, rows, reader, LatentCodec(), Unconditional(), "float32")


@pytest.mark.parametrize("kind", ["bytes", "files", "arrays"])
@pytest.mark.parametrize("own_split", [False, True], ids=["taken from training", "a split"])
def test_a_single_image_of_thousands_that_was_replaced_is_noticed(kind, own_split, tmp_path):
    (tmp_path / "held").mkdir()
    test = {"test": _images(kind, tmp_path / "held", None).select(range(10))} if own_split else {}
    first, again, changed = (_key(train=_images(kind, tmp_path, i), **test)["data"] for i in (None, None, 1001))
    assert first == again
    differing = [
        (split, part)
        for split in ("train", "held-out")
        for part in first[split]
        if first[split][part] != changed[split][part]
    ]
    expected = [("train", "images")]
    if not own_split:  # an image that was replaced has another place in the order, and perhaps another side
        differing = [each for each in differing if each[1] == "images" and each[0] == "train"]
    assert differing == expected


def test_rows_in_another_order_are_others():
    rows = Dataset.from_dict({"image": np.arange(80.0).reshape(20, 1, 2, 2)})
    shuffled = rows.shuffle(seed=0)
    assert _key(train=rows)["data"]["train"] != _key(train=shuffled)["data"]["train"]
    assert _key(train=shuffled) == _key(train=shuffled.flatten_indices())


@pytest.mark.parametrize(("column", "name"), [("labels", "label"), ("captions", "caption")])
def test_a_single_label_or_caption_that_was_changed_is_named(column, name, tmp_path):
    rows = {"image": np.zeros((20, 1, 2, 2)), "labels": [0, 1] * 10, "captions": list("abcdefghijklmnopqrst")}
    columns = ("image", "labels", "captions")
    cache = LatentCache(write(tmp_path))
    cache.key = _key("train", columns, train=Dataset.from_dict(rows))
    rows[column][7] = {"labels": 0, "captions": "h?"}[column]
    with refused(f"something else: its data.train.{name} are others"):
        cache.check_key(_key("train", columns, train=Dataset.from_dict(rows)))


def test_a_file_that_is_no_longer_there_is_another_image(tmp_path):
    rows = _images("files", tmp_path, None)
    before = _key(train=rows)
    (tmp_path / "7.png").unlink()
    assert before["data"] != _key(train=rows)["data"]


def test_the_codecs_scale_may_change_and_its_autoencoder_be_given_by_name_or_as_a_module(tmp_path):
    gray = {"image_size": 32, "channels": 1}
    codec = LatentCodec("builtin:digits")
    data = ready(shapes(write(tmp_path, shapes(**gray), codec), **gray))
    for other in (LatentCodec("builtin:digits", scale=2.0), LatentCodec(codec.autoencoder)):
        data.use_latents(other, Unconditional())


def test_an_incomplete_cache_is_refused_with_what_finishes_it(tmp_path):
    write(tmp_path)
    (tmp_path / "train-00001.safetensors").unlink()
    message = f"1 of 4 files are missing, such as train-00001.*ldmprobe cache --config YOURS.yaml --out {tmp_path}` finishes it"
    with refused(message):
        shapes(tmp_path).setup()
    write(tmp_path)
    shapes(tmp_path).setup()


@pytest.mark.parametrize("content", [None, "", "[]", '{"key": {}}'])
def test_a_folder_that_is_no_cache_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "cache.json").write_text(content)
    with refused(r"is no cache of latents .*`ldmprobe cache --config YOURS.yaml --out"):
        shapes(tmp_path).setup()


def test_a_damaged_file_is_named(tmp_path):
    path = write(tmp_path) / "held_out-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with refused(r"held_out-00000.safetensors is not readable as cached latents .*remove it"):
        next(iter(ready(shapes(tmp_path)).val_dataloader()))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"streaming": True, "num_classes": 20, "held_out_rows": 5}, "streaming"),
        ({"random_crop": True, "image_size": 12}, "random_crop"),
    ],
)
def test_what_cannot_be_encoded_beforehand_is_refused(tmp_path, folder, options, named):
    for encode in (lambda: write(tmp_path / "new", shapes(**options)), lambda: shapes(folder, **options).setup()):
        with refused(f"leave (out the data's|it out).*|{named}"):
            encode()
    assert not (tmp_path / "new").exists()


def test_the_same_folder_is_read_by_its_description_alone(folder):
    cache = LatentCache(folder)
    assert (cache.num_rows, cache.image_shape, cache.dtype) == ({"train": 27, "held_out": 3}, (3, 16, 16), "float32")
