"""The same pictures come out of every kind of source."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage

from ldmprobe import ImageColumn, ImageData, LatentCodec, LatentStatistics, Unconditional
from ldmprobe.data.image_files import ImageFiles
from ldmprobe.data.latent_writer import write_cache
from ldmprobe.data.sources import choose_splits, load_splits
from ldmprobe.probing.latent_statistics import latents_of
from tests.helpers import ready, refused, tiny_unet

TRAIN, TEST = range(12), range(12, 16)
KINDS = ["parquet folder", "save_to_disk", "DatasetDict", "imagefolder"]

_choose = partial(choose_splits, image=ImageColumn(), files=ImageFiles())


def _picture(i: int) -> PILImage.Image:
    """A picture that tells its number: gray level 10 i."""
    return PILImage.new("L", (8, 8), 10 * i)


def _table(numbers) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=["even", "odd"])})
    columns = {"image": [_picture(i) for i in numbers], "label": [i % 2 for i in numbers]}
    return Dataset.from_dict(columns, features=features)


def _write(kind: str, folder: Path) -> str:
    if kind == "parquet folder":  # as on the hub, the training split in two shards
        (folder / "data").mkdir(parents=True)
        for shard in range(2):
            _table(TRAIN).shard(2, shard).to_parquet(folder / "data" / f"train-0000{shard}-of-00002.parquet")
        _table(TEST).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    elif kind == "save_to_disk":
        _table([*TRAIN, *TEST]).save_to_disk(folder)
    elif kind == "DatasetDict":
        DatasetDict({"train": _table(TRAIN), "test": _table(TEST)}).save_to_disk(folder)
    elif kind == "imagefolder":
        for split, numbers in (("train", TRAIN), ("test", TEST)):
            for i in numbers:
                path = folder / split / ("odd" if i % 2 else "even") / f"{i:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                _picture(i).save(path)
    elif kind == "parquet file":
        folder.mkdir()
        _table([*TRAIN, *TEST]).to_parquet(folder / "pictures.parquet")
        return str(folder / "pictures.parquet")
    return str(folder)


def _numbers(images: torch.Tensor) -> list[int]:
    return ((images[:, 0, 0, 0] + 1) * 127.5 / 10).round().int().tolist()


def _contents(data: ImageData, held_out: bool, column: str = "label") -> list[tuple]:
    """(number, label or caption) of every picture."""
    batches = data.reference_batches(1000, held_out=held_out)
    return sorted(pair for b in batches for pair in zip(_numbers(b["image"]), list(b[column]), strict=True))


def _captions(data: ImageData) -> list[tuple[int, str]]:
    """(number, caption) of every picture, of both sides."""
    data.setup()
    return sorted(_contents(data, False, "caption") + _contents(data, True, "caption"))


def _expected(numbers) -> list[tuple[int, int]]:
    return [(i, i % 2) for i in numbers]


@pytest.mark.parametrize("kind", [*KINDS, "parquet file"])
def test_every_kind_of_source_gives_every_picture_with_its_label(kind, tmp_path):
    data = ready(ImageData(_write(kind, tmp_path / "pictures"), label_column="label"))
    train, held_out = _contents(data, held_out=False), _contents(data, held_out=True)
    assert sorted(train + held_out) == _expected([*TRAIN, *TEST])
    assert data.class_names == ["even", "odd"]
    if kind in ("parquet folder", "DatasetDict", "imagefolder"):  # they have a test split
        assert held_out == _expected(TEST)


def test_a_test_split_beside_what_is_held_out_is_what_test_measures(tmp_path):
    splits = {"train": _table(range(6)), "validation": _table(range(6, 9)), "test": _table(range(9, 12))}
    DatasetDict(splits).save_to_disk(tmp_path / "pictures")

    def seen(data: ImageData) -> tuple[list[int], ...]:
        data.setup()
        loaders = data.val_dataloader(), data.test_dataloader()
        return tuple(sorted(number for batch in loader for number in _numbers(batch["image"])) for loader in loaders)

    pictures = str(tmp_path / "pictures")
    assert seen(ImageData(pictures)) == ([6, 7, 8], [9, 10, 11])
    assert seen(ImageData(pictures, held_out_split="test")) == ([9, 10, 11], [9, 10, 11])
    data = ImageData(pictures, check_rows=3)
    assert write_cache(data, LatentCodec(), Unconditional(), tiny_unet(), tmp_path / "latents")[1]
    cached = ready(ImageData(pictures, latents=str(tmp_path / "latents")))
    with refused("leave `latents` out to measure that one"):
        cached.test_dataloader()


@pytest.mark.parametrize("kind", ["parquet folder", "imagefolder", "parquet file"])
def test_a_source_can_be_streamed(kind, tmp_path):
    data = ImageData(
        _write(kind, tmp_path / "pictures"), label_column="label", streaming=True, num_classes=2, held_out_fraction=0.4
    )
    data.setup()
    train, held_out = _contents(data, held_out=False), _contents(data, held_out=True)
    assert sorted(train + held_out) == _expected([*TRAIN, *TEST])
    if kind != "parquet file":  # they have a test split
        assert held_out == _expected(TEST)


def test_a_folder_from_save_to_disk_is_not_streamed(tmp_path):
    with refused("leave out `streaming`"):
        load_splits(_write("save_to_disk", tmp_path / "pictures"), streaming=True)


def test_dataset_kwargs_reach_load_dataset(tmp_path):
    folder = _write("parquet folder", tmp_path / "pictures")
    splits = load_splits(folder, data_files={"train": "data/test-*.parquet"})
    assert {name: len(rows) for name, rows in splits.items()} == {"train": len(TEST)}


@pytest.mark.parametrize("fixed", [False, True])
def test_the_held_out_rows_are_always_the_same_and_no_training_rows(fixed):
    table = _table(range(20))
    parts = [_choose({"train": table}, "train", None, 0.25, 0, fixed=fixed) for _ in range(2)]
    train, held_out = ([np.asarray(image)[0, 0] for image in rows["image"]] for rows in parts[0])
    assert [np.asarray(image)[0, 0] for image in parts[1][1]["image"]] == held_out
    assert len(held_out) == (5 if fixed else 2)
    assert sorted(train + held_out) == [10 * i for i in range(20)]


def test_usual_and_given_names_are_found_and_the_training_split_is_never_held_out():
    table = _table(range(6))
    splits = {"test": table, "validation": table.select(range(2)), "extra": table.select(range(3))}
    assert len(_choose(splits, "test", None, 0.1, 0)[1]) == 2
    assert len(_choose(splits, "test", "extra", 0.1, 0)[1]) == 3
    train, held_out = _choose({"test": table}, "test", None, 0.5, 0)
    assert (len(train), len(held_out)) == (3, 3)


@pytest.mark.parametrize(
    ("train", "held_out", "empty", "told"),
    [
        ("training", None, None, "There is no split 'training'; the dataset has 'train', 'test'"),
        ("train", "training", None, "There is no split 'training'; the dataset has 'train', 'test'"),
        ("train", None, "train", "Split 'train' is empty"),
        ("train", None, "test", "Split 'test' is empty"),
    ],
)
def test_a_split_that_is_not_there_or_empty_is_refused_by_name(train, held_out, empty, told):
    splits = {name: _table([] if name == empty else range(4)) for name in ("train", "test")}
    with refused(told):
        _choose(splits, train, held_out, 0.1, 0)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_to_hold_one_out_are_refused(rows):
    with refused(rf"has {rows} row\(s\); expected at least 2"):
        _choose({"train": _table(range(rows))}, "train", None, 0.1, 0)


def test_what_is_nowhere_is_refused_with_what_to_write():
    with refused("'no/such-dataset' is no folder here and was not found on the hub") as error:
        load_splits("no/such-dataset")
    assert "Expected a hub id, a folder of parquet files" in str(error.value)


@pytest.mark.parametrize("source", ["folder", "broken.parquet"])
def test_what_holds_no_data_is_refused(tmp_path, source):
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but not really")
    with refused("holds no dataset that can be read"):
        load_splits(str(tmp_path / source))


# --- folders and tables as they come ----------------------------------------------------------------------------------


def _lora_folder(folder: Path, n: int, captions: dict[int, str], ending: str = ".txt", under: str = "") -> str:
    (folder / under).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        _picture(i).save(folder / under / f"{i}.png")
        if i in captions:
            (folder / under / f"{i}{ending}").write_text(captions[i], encoding="utf-8-sig")
    return str(folder)


@pytest.mark.parametrize(("ending", "under"), [(".txt", ""), (".caption", "10_cat")])
@pytest.mark.parametrize("streaming", [False, True])
def test_captions_are_in_text_files_beside_the_images(ending, under, streaming, tmp_path):
    captions = {i: f" a cat,\nno. {i}\n" for i in range(6)}
    folder = _lora_folder(tmp_path / "cats", 6, captions, ending, under)
    (tmp_path / "cats" / "0.json").write_text("{}")  # as downloaders leave behind
    (tmp_path / "cats" / "README.md").write_text("# Cats")
    if under:
        (tmp_path / "cats" / "0.json").unlink()
    data = ImageData(folder, caption_column="text", streaming=streaming, held_out_fraction=0.5)
    assert _captions(data) == [(i, f"a cat, no. {i}") for i in range(6)]


def test_an_image_without_a_caption_beside_it_has_an_empty_one_and_is_counted(tmp_path):
    folder = _lora_folder(tmp_path / "cats", 6, dict.fromkeys(range(1, 6), "a cat"))
    with pytest.warns(UserWarning, match="1 of the 6 captions that were checked are empty"):
        assert _captions(ImageData(folder, caption_column="text"))[0] == (0, "")


@pytest.mark.parametrize(("n", "setting"), [(5, None), (8, "train"), (10, None), (14, None)])
def test_a_handful_of_images_are_probed_or_refused_with_the_setting_that_would_do(n, setting, tmp_path):
    folder = _lora_folder(tmp_path / "cats", n, dict.fromkeys(range(n), "a cat"))
    data = ready(ImageData(folder, caption_column="text", held_out_split=setting))
    real = [latents_of(LatentCodec(), data.reference_batches(99, held_out)) for held_out in (False, True)]
    if n < 8:
        with refused(r"expected at least 8.*`held_out_split: train`"):
            LatentStatistics.fit(real[0])
    else:
        assert LatentStatistics.fit(real[0]).num_latents >= 8
        assert len(real[1]) >= 2


def test_a_caption_that_is_no_text_is_refused(tmp_path):
    folder = _lora_folder(tmp_path / "cats", 6, dict.fromkeys(range(6), "a cat"))
    (tmp_path / "cats" / "3.txt").write_bytes(b"\xff\xfe\x00")
    with refused(r"3\.txt cannot be read"):
        load_splits(folder)


def test_images_that_are_passed_over_are_told(tmp_path):
    folder = _lora_folder(tmp_path / "cats", 6, {})
    (tmp_path / "cats" / "6.heic").write_bytes(b"photo")
    with pytest.warns(UserWarning, match=r"1 files such as .*6\.heic are left out"):
        assert len(load_splits(folder)["train"]) == 6


def test_a_table_beside_images_is_read_as_a_table(tmp_path):
    folder = _lora_folder(tmp_path / "cats", 6, {})
    lines = ["file,words", *(f"{i}.png,no. {i}" for i in range(6))]
    (tmp_path / "cats" / "train.csv").write_text("\n".join(lines))
    data = ImageData(folder, image_column="file", caption_column="words")
    assert _captions(data) == [(i, f"no. {i}") for i in range(6)]


@pytest.mark.parametrize("kind", ["binary", "large_binary", "string", "struct of bytes", "struct of paths"])
@pytest.mark.parametrize("streaming", [False, True])
def test_images_are_stored_as_bytes_or_as_names_of_files(kind, streaming, tmp_path):
    _lora_folder(tmp_path, 6, {})
    names = [f"{i}.png" for i in range(6)]
    stored = {
        "binary": pa.array([(tmp_path / name).read_bytes() for name in names], pa.binary()),
        "large_binary": pa.array([(tmp_path / name).read_bytes() for name in names], pa.large_binary()),
        "string": pa.array(names),
        "struct of bytes": pa.array([{"bytes": (tmp_path / name).read_bytes()} for name in names]),
        "struct of paths": pa.array([{"bytes": None, "path": str(tmp_path / name)} for name in names]),
    }
    table = pa.table({"image": stored[kind], "text": [str(i) for i in range(6)]})
    pq.write_table(table, tmp_path / "rows.parquet")
    data = ImageData(str(tmp_path / "rows.parquet"), caption_column="text", streaming=streaming, held_out_fraction=0.5)
    assert _captions(data) == [(i, str(i)) for i in range(6)]


@pytest.mark.parametrize("format", ["torch", "numpy"])
def test_a_format_that_was_set_does_not_matter(format, tmp_path):
    _table([*TRAIN, *TEST]).with_format(format).save_to_disk(tmp_path / "table")
    data = ready(ImageData(str(tmp_path / "table"), label_column="label"))
    contents = _contents(data, held_out=False) + _contents(data, held_out=True)
    assert sorted(contents) == _expected([*TRAIN, *TEST])
