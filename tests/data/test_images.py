"""ImageData as a user meets it."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from ldmprobe.data.images import ImageData
from ldmprobe.errors import ConfigurationError

SHAPES = {"num_images": 30, "size": 16}


def _shapes(**options) -> ImageData:
    data = ImageData("builtin:shapes", dict(SHAPES), **{"batch_size": 4, **options})
    data.setup()
    return data


def _take(loader, num_batches: int) -> list[dict]:
    return list(islice(loader, num_batches))


def _same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(torch.equal(x["image"], y["image"]) for x, y in zip(a, b, strict=True))


def _keys(batches) -> set[bytes]:
    return {image.numpy().tobytes() for batch in batches for image in batch["image"]}


def _parquet(path, images: list, labels: list | None = None, label_feature=None) -> str:
    features = {"image": Image()} | ({"label": label_feature or Value("int64")} if labels is not None else {})
    columns = {"image": images} | ({"label": labels} if labels is not None else {})
    Dataset.from_dict(columns, features=Features(features)).to_parquet(path)
    return str(path)


def _grey(n: int, size: int = 8) -> list:
    return [PILImage.new("L", (size, size), 5 * i) for i in range(n)]


def test_a_batch_has_images_labels_captions_and_rows():
    data = _shapes(label_column="label", caption_column="caption")
    (batch,) = _take(data.train_dataloader(), 1)
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    for label, caption in zip(batch["label"].tolist(), batch["caption"], strict=True):
        assert data.class_names[label] in caption
    assert (data.num_classes, data.image_shape) == (20, (3, 16, 16))


def test_columns_that_are_not_named_are_left_out():
    (batch,) = _take(_shapes().train_dataloader(), 1)
    assert set(batch) == {"image", "index"}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_size_and_channels_are_as_asked(channels):
    data = _shapes(image_size=8, channels=channels)
    (batch,) = _take(data.train_dataloader(), 1)
    assert batch["image"].shape == (4, channels, 8, 8)


def test_the_same_batches_with_two_workers_as_with_none():
    options = {"random_crop": True, "random_flip": True, "image_size": 12}
    with_none, with_two = (_take(_shapes(num_workers=n, **options).train_dataloader(), 9) for n in (0, 2))
    assert _same(with_none, with_two)


def test_the_seed_changes_the_order_of_training_and_nothing_else():
    one, two = _shapes(seed=1), _shapes(seed=2)
    assert not _same(_take(one.train_dataloader(), 3), _take(two.train_dataloader(), 3))
    assert _same(_take(one.val_dataloader(), 99), _take(two.val_dataloader(), 99))
    for held_out in (False, True):
        assert _same(list(one.reference_batches(10, held_out)), list(two.reference_batches(10, held_out)))


def test_reference_batches_do_not_depend_on_batch_size_workers_or_augmentation():
    plain = _shapes()
    other = _shapes(batch_size=7, num_workers=2, random_crop=True, random_flip=True)
    assert _same(list(plain.reference_batches(12)), list(other.reference_batches(12)))


def test_reference_batches_are_as_many_as_asked_or_as_there_are():
    data = _shapes()
    assert sum(len(batch["image"]) for batch in data.reference_batches(10)) == 10
    assert sum(len(batch["image"]) for batch in data.reference_batches(1000)) == 27
    assert _keys(data.reference_batches(10)) < _keys(data.reference_batches(20))


def test_held_out_images_are_never_trained_on():
    data = _shapes(held_out_fraction=0.2)
    trained = _keys(_take(data.train_dataloader(), 40))
    held_out = _keys(data.val_dataloader())
    assert (len(trained), len(held_out)) == (24, 6)
    assert not trained & held_out
    assert _keys(data.reference_batches(99)) == trained
    assert _keys(data.reference_batches(99, held_out=True)) == held_out


def test_held_out_images_are_not_augmented():
    data, plain = _shapes(random_crop=True, random_flip=True, image_size=12), _shapes(image_size=12)
    assert _same(_take(data.val_dataloader(), 9), _take(plain.val_dataloader(), 9))


def test_a_built_in_stream_holds_out_its_first_rows():
    data = _shapes(streaming=True, held_out_rows=5)
    held_out, trained = _keys(data.val_dataloader()), _keys(_take(data.train_dataloader(), 20))
    assert (len(held_out), len(trained)) == (5, 25)
    assert not held_out & trained
    assert _keys(data.reference_batches(99, held_out=True)) == held_out


def test_reference_batches_of_a_stream_are_the_same_for_any_seed():
    one, two = (_shapes(streaming=True, held_out_rows=5, seed=seed) for seed in (1, 2))
    assert _same(list(one.reference_batches(10)), list(two.reference_batches(10)))


def test_float_arrays_pass_unchanged():
    data = ImageData("builtin:gaussian", {"num_images": 20, "channels": 5, "size": 4})
    data.setup()
    assert data.image_shape == (5, 4, 4)
    (batch,) = data.reference_batches(99)
    assert batch["image"].abs().max() > 1


def test_classes_are_counted_where_the_column_does_not_say(tmp_path):
    data = ImageData(_parquet(tmp_path / "a.parquet", _grey(10), [0, 1, 2, 6, 0, 1, 2, 6, 6, 6]), label_column="label")
    data.setup()
    assert data.num_classes == 7


# --- what is refused, before training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["image_column", "label_column", "caption_column"])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_column_is_refused_with_the_known_ones(column, streaming):
    with pytest.raises(ConfigurationError, match="no column 'img'; the dataset has 'image', 'label', 'caption'"):
        _shapes(streaming=streaming, held_out_rows=5, num_classes=20, **{column: "img"})


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"batch_size": 0}, "batch_size 0; expected at least 1"),
        ({"channels": 2}, "channels 2; expected 1"),
        ({"held_out_fraction": 1.0}, r"held_out_fraction 1.0; expected a number in \(0, 1\)"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, text):
    with pytest.raises(ConfigurationError, match=text):
        ImageData("builtin:digits", **wrong)


def test_images_of_different_sizes_are_refused(tmp_path):
    images = [PILImage.new("L", (8, 8)) for _ in range(9)] + [PILImage.new("L", (9, 8))]
    with pytest.raises(ConfigurationError, match=r"image of shape \(1, 8, [89]\).*set the data's `image_size`"):
        ImageData(_parquet(tmp_path / "a.parquet", images)).setup()


def test_a_label_above_the_number_of_classes_is_refused_and_named(tmp_path):
    path = _parquet(tmp_path / "a.parquet", _grey(10), [0, 1] * 4 + [5, 5])
    with pytest.raises(ConfigurationError, match=r"class label 5 in column 'label'.*expected 0 to 2"):
        ImageData(path, label_column="label", num_classes=3).setup()


def test_a_negative_label_is_refused(tmp_path):
    path = _parquet(tmp_path / "a.parquet", _grey(10), [0, 1] * 4 + [-1, -1])
    with pytest.raises(ConfigurationError, match="class label -1"):
        ImageData(path, label_column="label").setup()


def test_labels_that_are_no_integers_are_refused(tmp_path):
    path = _parquet(tmp_path / "a.parquet", _grey(4), list("abcd"), Value("string"))
    with pytest.raises(ConfigurationError, match="expected integer class labels"):
        ImageData(path, label_column="label").setup()


def test_a_class_label_feature_names_the_classes(tmp_path):
    feature = ClassLabel(names=["cat", "dog", "emu"])
    data = ImageData(_parquet(tmp_path / "a.parquet", _grey(4), [0, 1, 0, 1], feature), label_column="label")
    data.setup()
    assert (data.class_names, data.num_classes) == (["cat", "dog", "emu"], 3)


def test_a_stream_must_be_told_how_many_classes(tmp_path):
    path = _parquet(tmp_path / "a.parquet", _grey(10), [0, 1] * 5)
    with pytest.raises(ConfigurationError, match="set the data's `num_classes`"):
        ImageData(path, label_column="label", streaming=True, held_out_fraction=0.5).setup()


def test_a_label_out_of_range_in_the_first_rows_of_a_stream_is_refused(tmp_path):
    path = _parquet(tmp_path / "a.parquet", _grey(10), [0, 1] * 4 + [5, 5])
    with pytest.raises(ConfigurationError, match="class label 5"):
        ImageData(path, label_column="label", streaming=True, held_out_fraction=0.5, num_classes=2).setup()


def test_an_unreadable_image_is_named_by_its_row_in_the_dataset(tmp_path):
    images = [{"bytes": b"broken", "path": None} if i == 7 else image for i, image in enumerate(_grey(20))]
    with pytest.raises(ConfigurationError, match="Row 7, column 'image': the image cannot be read"):
        ImageData(_parquet(tmp_path / "a.parquet", images)).setup()


def test_a_stream_with_no_rows_is_refused_as_empty(tmp_path):
    path = _parquet(tmp_path / "a.parquet", _grey(4))
    with pytest.raises(ConfigurationError, match="empty"):
        ImageData(path, streaming=True).setup()


def test_the_rows_of_batches_are_rows_of_the_dataset():
    from ldmprobe.data.builtin import shapes

    table = shapes(**SHAPES)
    for batch in [*_take(_shapes().train_dataloader(), 3), *_take(_shapes().val_dataloader(), 1)]:
        for image, row in zip(batch["image"], batch["index"].tolist(), strict=True):
            expected = np.asarray(table[row]["image"]).transpose(2, 0, 1) / 127.5 - 1
            np.testing.assert_allclose(image, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (["a dog", None, "a cat"], "has None in column 'text'; expected a caption"),
        (
            ["", " ", ""],
            "All captions of the training split are empty in column 'text'.*only a model without text can leave",
        ),
    ],
)
def test_captions_that_say_nothing_are_an_error(captions, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        _captioned(10 * captions, tmp_path).setup()


def _captioned(captions: list, folder) -> ImageData:
    features = Features({"image": Image(), "text": Value("string")})
    Dataset.from_dict({"image": _grey(30), "text": captions}, features=features).to_parquet(folder / "rows.parquet")
    return ImageData(str(folder / "rows.parquet"), caption_column="text")


def test_captions_that_are_empty_here_and_there_are_counted(tmp_path):
    with pytest.warns(UserWarning, match="12 of the 30 captions that were checked are empty: in training") as told:
        _captioned([*["a dog"] * 18, *[""] * 7, *[" "] * 5], tmp_path).setup()
    assert len(told) == 1


@pytest.mark.parametrize(
    "columns", [{"caption_column": "image"}, {"label_column": "image"}, {"label_column": "a", "caption_column": "a"}]
)
def test_a_column_is_of_one_use(columns):
    with pytest.raises(
        ConfigurationError, match=r"ImageData got image_column 'image', .*expected another column for each"
    ):
        ImageData("builtin:shapes", **columns)
