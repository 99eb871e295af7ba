"""Columns of masks, boxes and further images follow the image through reading, cropping, mirroring, hashing and
caching."""

import io
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

import ldmprobe.data.columns
from ldmprobe import BoxesColumn, Column, ImageColumn, ImageData, LatentCodec, MaskColumn, ObjectsColumn, Unconditional
from ldmprobe.data.checked import check_captions
from ldmprobe.data.image_files import ImageFiles
from ldmprobe.data.image_hashes import image_hashes
from ldmprobe.data.latent_writer import write_cache
from tests.helpers import encoded, ready, refused, tiny_unet

WIDTH, HEIGHT, SIZE, RED = 48, 32, 16, (255, 0, 0)


def scene(number: int) -> dict[str, Any]:
    """A white image with a red rectangle that is too wide to be seen whole, its mask and box, a gray copy, and two
    captions."""
    rng = np.random.default_rng(number)
    x0, y0 = int(rng.integers(2, 24)), int(rng.integers(2, 14))
    x1, y1 = x0 + int(rng.integers(8, 22)), y0 + int(rng.integers(6, 16))
    image, mask = PILImage.new("RGB", (WIDTH, HEIGHT), "white"), PILImage.new("L", (WIDTH, HEIGHT))
    image.paste(RED, (x0, y0, x1, y1))
    mask.paste(7, (x0, y0, x1, y1))
    return {
        "image": image,
        "mask": mask,
        "boxes": [[x0, y0, x1, y1]],
        "objects": {"boxes": [[x0, y0, x1, y1]], "labels": [number % 3]},
        "sketch": image.convert("L"),
        "caption": [f"scene {number}", "a red box"],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("scenes")
    rows = [scene(i) for i in range(40)]
    box = List(List(Value("float32"), length=4))
    objects = {"boxes": box, "labels": List(ClassLabel(names=["a", "b", "c"]))}
    features = {"image": Image(), "mask": Image(), "boxes": box, "objects": objects, "sketch": Image()}
    features["caption"] = List(Value("string"))
    table = {name: [row[name] for row in rows] for name in features}
    Dataset.from_dict(table, features=Features(features)).to_parquet(place / "train.parquet")
    return place


def scenes(folder: Path, **options) -> ImageData:
    columns = [MaskColumn(), BoxesColumn(), ObjectsColumn(), ImageColumn("sketch", "sketch", channels=1)]
    settings = {"image_size": SIZE, "batch_size": 8, "columns": columns, "caption_column": "caption"}
    return ready(ImageData(str(folder), **{**settings, **options}))


def visible(mask: torch.Tensor) -> tuple[int, int, int, int]:
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.mark.parametrize(
    "options", [{"random_crop": True, "random_flip": True}, {"resize": "squash", "random_flip": True}]
)
def test_mask_boxes_and_further_images_are_those_of_the_image_as_it_is_seen(folder, options):
    data, places = scenes(folder, **options), set()
    for batch in islice(data.train_dataloader(), 20):
        assert (batch["mask"].dtype, batch["mask"].shape) == (torch.uint8, (8, SIZE, SIZE))
        assert set(batch["mask"].unique().tolist()) <= {0, 7}
        for image, mask, boxes, objects, sketch, row in zip(
            *(batch[name] for name in ("image", "mask", "boxes", "objects", "sketch", "index")), strict=True
        ):
            red = (image[0] > 0.5) & (image[1] < 0)  # red and more
            assert (red != (mask == 7)).float().mean() < 0.12  # an edge of one pixel, smoothed by one of them
            assert ((sketch[0] < 0.5) != (mask == 7)).float().mean() < 0.12
            assert len(boxes) == int(mask.any())
            assert torch.equal(objects[:, :4], boxes)
            assert (objects[:, 4] == int(row) % 3).all()
            for box in boxes:
                assert np.abs(np.array(visible(mask)) - box.numpy() * SIZE).max() <= 1
                places.add(round(float(box[0]), 2))
    assert len(places) > 20  # crops and flips have moved them


def test_a_cache_gives_the_same_batches_mirrored_or_not(folder, tmp_path):
    images = scenes(folder, random_flip=True)
    write_cache(images, LatentCodec(), Unconditional(), tiny_unet(), tmp_path, rows_per_shard=13, batch_size=5)
    latents = scenes(folder, random_flip=True, latents=str(tmp_path))
    latents.use_latents(LatentCodec(), Unconditional())
    mirrored = 0
    for cached, read in zip(islice(latents.train_dataloader(), 20), islice(images.train_dataloader(), 20), strict=True):
        assert torch.equal(cached.pop("latent"), read.pop("image"))
        assert cached.keys() == read.keys() == {"index", "mask", "boxes", "objects", "sketch", "caption"}
        assert cached["caption"] == read["caption"]
        assert all(torch.equal(cached[name], read[name]) for name in ("index", "mask", "sketch"))
        for name in ("boxes", "objects"):
            assert all(torch.equal(*pair) for pair in zip(cached[name], read[name], strict=True))
        mirrored += sum(caption == "a red box" for caption in cached["caption"])
    assert 0 < mirrored < 160  # of several captions, too, the same one is drawn
    other = scenes(folder, random_flip=True, latents=str(tmp_path), columns=[MaskColumn()])
    with refused(r"something else: its data.train.boxes is .*, this configuration's is"):
        other.use_latents(LatentCodec(), Unconditional())


@dataclass(frozen=True)
class Weight(Column):
    """A number of one's own."""

    column: str = "weight"
    name: str = "weight"

    def read(self, value, reading):
        return torch.tensor([float(value), float(reading.row)])


def test_a_kind_of_column_of_ones_own(tmp_path):
    table = {"image": [np.full((4, 4), i, np.uint8) for i in range(20)], "weight": [i / 2 for i in range(20)]}
    Dataset.from_dict(table).to_parquet(tmp_path / "a.parquet")

    def data(**options) -> ImageData:
        return ready(ImageData(str(tmp_path / "a.parquet"), columns=[Weight()], batch_size=4, **options))

    write_cache(data(), LatentCodec(), Unconditional(), tiny_unet(), tmp_path / "latents")
    for found in (data(), data(latents=str(tmp_path / "latents"))):
        batch = next(iter(found.train_dataloader()))
        assert torch.equal(batch["weight"], torch.stack([batch["index"] / 2, batch["index"]], dim=1))


# --- what is refused -------------------------------------------------------------------------------------------------


def one_row(**values) -> dict[str, Any]:
    return {"image": PILImage.new("RGB", (8, 6)), **values}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (MaskColumn(), PILImage.new("L", (6, 8)), "Row 3, column 'mask': the mask cannot be read .it is 6×8, its image 8×6"),
        (MaskColumn(), PILImage.new("RGB", (8, 6)), "holds one number for each pixel, this picture of mode RGB several"),
        (MaskColumn(), np.zeros((6, 8)), r"expected whole numbers \(H, W\), got float64"),
        (BoxesColumn(), [[5, 5, 3, 2]], r"no boxes x0, y0, x1, y1 in pixels .* \(not widths and heights\)"),
        (MaskColumn(), np.full((6, 8), 2**32 - 1, np.uint32), "it holds the number 4294967295; expected"),
        (MaskColumn(), np.full((6, 8), -(2**40)), "it holds the number -1099511627776; expected"),
        (BoxesColumn(), [[0.1, 0.1, 0.4, 0.5]], "no fractions"),
        (BoxesColumn(), [[1, 1, 3, 3], [8, 2, 12, 5]], "all within the image, at least in part"),
        (BoxesColumn(), [[1, 1, 3, 4], [1, np.nan, 3, 2]], "no boxes x0, y0, x1, y1 in pixels"),
        (BoxesColumn(), [[1, 1, np.inf, 2]], "no boxes x0, y0, x1, y1 in pixels"),
        (ObjectsColumn(), {"boxes": [[np.nan, 1, 3, 2]], "labels": [0]}, "no boxes x0, y0, x1, y1 in pixels"),
    ],
)  # fmt: skip
def test_what_does_not_lie_on_the_image_is_refused_with_its_row(column, value, message):
    reader = ldmprobe.data.rows.RowReader(others=(column,))
    with refused(message):
        reader.read(one_row(**{column.name: value}), 3)


def test_a_mask_of_a_lossy_file_is_refused_and_that_of_a_lossless_one_is_as_it_was():
    reader = ldmprobe.data.rows.RowReader(others=(MaskColumn(),))
    drawn = np.zeros((24, 24), np.uint8)
    drawn[5:13, 3:20] = 255
    turned = PILImage.Exif()
    turned[274] = 3
    masks = {kind: encoded(PILImage.fromarray(drawn), kind) for kind in ("JPEG", "PNG")}
    masks["turned"] = encoded(PILImage.fromarray(drawn), "JPEG", exif=turned.tobytes())
    stored = {kind: {"image": PILImage.new("RGB", (24, 24)), "mask": mask} for kind, mask in masks.items()}
    assert (np.asarray(PILImage.open(io.BytesIO(stored["JPEG"]["mask"]["bytes"]))) != 0).sum() > (drawn != 0).sum()
    assert reader.read(stored["PNG"], 3)["mask"].tolist() == drawn.tolist()
    for kind in ("JPEG", "turned"):
        with refused("Row 3, column 'mask': the mask cannot be read .it is a JPEG.* write masks as PNG"):
            reader.read(stored[kind], 3)


def test_an_image_without_boxes_has_none_and_palettes_are_numbers():
    palette = PILImage.new("P", (8, 6), 200)
    palette.putpalette([9, 9, 9] * 256)
    reader = ldmprobe.data.rows.RowReader(others=(BoxesColumn(), MaskColumn()))
    sample = reader.read(one_row(boxes=[], mask=palette), 0)
    assert sample["boxes"].shape == (0, 4)
    assert (sample["mask"] == 200).all()


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_a_number_below_0_in_a_mask_stays_what_it_is(dtype):
    reader = ldmprobe.data.rows.RowReader(others=(MaskColumn(),))
    sample = reader.read(one_row(mask=np.full((6, 8), -1, dtype)), 0)
    assert (sample["mask"] == -1).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([MaskColumn(), MaskColumn("other")], "several columns that batches would call 'mask'"),
        ([MaskColumn("mask", "index")], "would call 'index', or its own name"),
        ([MaskColumn("__row__", "mask")], "a column called '__row__', a name of its own"),
    ],
)
def test_names_that_batches_cannot_have_are_refused(columns, message):
    with refused(message):
        ImageData("builtin:shapes", columns=columns)


def test_a_column_that_is_not_there_is_named():
    with refused("There is no column 'depth'; the dataset has 'image', 'label'"):
        ImageData("builtin:shapes", {"num_images": 20}, columns=[MaskColumn("depth")]).setup()


# --- hashes ----------------------------------------------------------------------------------------------------------


def test_each_image_is_hashed_once_a_start(folder, monkeypatch):
    hashed: list[int] = []

    def counted(rows, column, files):
        hashed.extend([len(rows)] if column == "image" else [])
        return image_hashes(rows, column, files)

    monkeypatch.setattr(ldmprobe.data.columns, "image_hashes", counted)
    data = scenes(folder)
    assert data.identity.summary() == data.state_dict()
    assert hashed == [40]


def test_no_byte_of_a_file_that_a_row_may_not_name_is_read(tmp_path):
    (tmp_path / "own").mkdir()
    secret, hashes = tmp_path / "secret", []
    table = Dataset.from_dict(
        {"image": [{"bytes": None, "path": str(secret)}]}, Features({"image": Image(decode=False)})
    )
    for content in (b"one", b"another"):
        secret.write_bytes(content)
        hashes += image_hashes(table, "image", ImageFiles((str(tmp_path / "own"),))).tolist()
    assert hashes[0] == hashes[1]
    assert image_hashes(table, "image", ImageFiles((str(tmp_path),))).tolist() != hashes[:1]


def test_an_image_folder_names_further_files_in_its_metadata(tmp_path):
    lines = []
    for i in range(6):
        row = scene(i)
        row["image"].save(tmp_path / f"{i}.png")
        (tmp_path / "masks").mkdir(exist_ok=True)
        row["mask"].save(tmp_path / "masks" / f"{i}.png")
        names = {"file_name": f"{i}.png", "mask_file_name": f"masks/{i}.png"}
        lines.append(json.dumps(names | {"objects": row["objects"]}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    data = ready(ImageData(str(tmp_path), image_size=SIZE, columns=[MaskColumn(), ObjectsColumn()], batch_size=6))
    batch = next(data.reference_batches(6))
    assert sorted(
        torch.cat([batch["index"], next(data.reference_batches(6, held_out=True))["index"]]).tolist()
    ) == list(range(6))
    for mask, objects, row in zip(batch["mask"], batch["objects"], batch["index"].tolist(), strict=True):
        assert np.abs(np.array(visible(mask)) - objects[0, :4].numpy() * SIZE).max() <= 1
        assert objects[0, 4] == row % 3
    wrong = ImageData(str(tmp_path), image_size=SIZE, columns=[ObjectsColumn(num_classes=2)])
    with refused(
        "column 'objects': the objects cannot be read .it has the class 2; expected a whole number from 0 to 1"
    ):
        wrong.setup()


def test_a_mirrored_image_whose_caption_tells_left_from_right_is_refused():
    settings = {"dataset_kwargs": {"num_images": 20, "size": 16}, "caption_column": "caption"}
    ImageData("builtin:shapes", **settings).setup()
    with refused(
        "`random_flip` mirrors images and not their captions, and 20 of the 20 captions .* leave `random_flip` out"
    ):
        ImageData("builtin:shapes", random_flip=True, **settings).setup()
    captions = ["turn right here", *["a cat"] * 200]
    with pytest.warns(UserWarning, match="1 of the 201 captions that were checked tell left from right"):
        check_captions(captions, mirrored=True)
