"""ImageData as a user meets it."""

import re
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from datasets.distributed import split_dataset_by_node
from PIL import Image as PILImage

from ldmprobe import ConfigurationError, ImageColumn, ImageData, LatentCodec, Unconditional
from ldmprobe.data.builtin import shapes
from ldmprobe.data.latent_writer import write_cache
from tests.helpers import ready, refused, row_reader, tiny_unet

SHAPES = {"num_images": 30, "size": 16}


def _shapes(**options) -> ImageData:
    return ready(ImageData("builtin:shapes", dict(SHAPES), **{"batch_size": 4, **options}))


def _take(loader, num_batches: int) -> list[dict]:
    return list(islice(loader, num_batches))


def _same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(torch.equal(x["image"], y["image"]) for x, y in zip(a, b, strict=True))


def _keys(batches) -> set[bytes]:
    return {image.numpy().tobytes() for batch in batches for image in batch["image"]}


def parquet(path, images: list, labels: list | None = None, label_feature=None) -> str:
    features = {"image": Image()} | ({"label": label_feature or Value("int64")} if labels is not None else {})
    columns = {"image": images} | ({"label": labels} if labels is not None else {})
    Dataset.from_dict(columns, features=Features(features)).to_parquet(path)
    return str(path)


def gray(n: int, size: int = 8) -> list:
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
    plain = _shapes(image_size=12)
    other = _shapes(image_size=12, batch_size=7, num_workers=2, random_crop=True, random_flip=True)
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


@pytest.mark.parametrize("options", [{}, {"held_out_split": "train"}], ids=str)
def test_the_ranks_of_a_built_in_stream_share_its_training_rows_and_no_others(options):
    data = _shapes(streaming=True, held_out_rows=5, **options)
    trained = [row["image"]["bytes"] for rank in range(4) for row in split_dataset_by_node(data.rows["train"], rank, 4)]
    held_out = [row["image"]["bytes"] for row in data.rows["held_out"]]
    everything = [row["image"]["bytes"] for row in ImageColumn().undecoded(shapes(**SHAPES))]
    assert sorted(trained) == sorted(everything if options else everything[5:])
    assert held_out == (everything if options else everything[:5])


def test_held_out_images_are_not_augmented():
    data, plain = _shapes(random_crop=True, random_flip=True, image_size=12), _shapes(image_size=12)
    assert _same(_take(data.val_dataloader(), 9), _take(plain.val_dataloader(), 9))


@pytest.mark.parametrize("cached", [False, True])
def test_a_cut_part_of_a_sorted_validation_split_is_of_many_classes(cached, tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    labels = [i // 10 for i in range(100)]
    train, validation = (
        Dataset.from_dict({"image": [PILImage.new("L", (4, 4), i) for i in grays], "label": labels}, features)
        for grays in (range(100), range(100, 200))
    )
    DatasetDict({"train": train, "validation": validation}).save_to_disk(tmp_path / "sorted")
    data = ImageData(str(tmp_path / "sorted"), label_column="label", batch_size=5)
    if cached:
        write_cache(data, LatentCodec(), Unconditional(), tiny_unet(), tmp_path / "latents")
        data = ImageData(data.dataset, label_column="label", batch_size=5, latents=str(tmp_path / "latents"))
    data.setup()
    first = _take(data.val_dataloader(), 4)
    numbers = [int(i) for batch in first for i in batch["index"]]
    assert [int(label) for batch in first for label in batch["label"]] == [labels[i] for i in numbers]
    assert len({labels[i] for i in numbers}) >= 7  # of 20 rows that are drawn evenly: 9 on average, hardly ever 6


def test_a_built_in_stream_holds_out_its_first_rows():
    data = _shapes(streaming=True, held_out_rows=5, label_column="label")
    assert data.num_classes == 20
    held_out, trained = _keys(data.val_dataloader()), _keys(_take(data.train_dataloader(), 20))
    assert (len(held_out), len(trained)) == (5, 25)
    assert not held_out & trained
    assert _keys(data.reference_batches(99, held_out=True)) == held_out


def test_reference_batches_of_a_stream_are_the_same_for_any_seed():
    one, two = (_shapes(streaming=True, held_out_rows=5, seed=seed) for seed in (1, 2))
    assert _same(list(one.reference_batches(10)), list(two.reference_batches(10)))


def test_classes_are_counted_where_the_column_does_not_say(tmp_path):
    data = ready(
        ImageData(parquet(tmp_path / "a.parquet", gray(10), [0, 1, 2, 6, 0, 1, 2, 6, 6, 6]), label_column="label")
    )
    assert data.num_classes == 7


# --- what is refused, before training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["image_column", "label_column", "caption_column"])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_column_is_refused_with_the_known_ones(column, streaming):
    with refused("no column 'img'; the dataset has 'image', 'label', 'caption'"):
        _shapes(streaming=streaming, held_out_rows=5, num_classes=20, **{column: "img"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size 0; expected at least 1"),
        ({"channels": 2}, "channels 2; expected 1"),
        ({"random_crop": True}, "random_crop with image_size None and resize 'crop'"),
        ({"random_crop": True, "image_size": 8, "resize": "squash"}, "random_crop with image_size 8 and resize 'squash'"),
        ({"held_out_fraction": 1.0}, r"held_out_fraction 1.0; expected a number in \(0, 1\)"),
        *[
            (columns, r"ImageData got the columns 'image', .*expected another column for each")
            for columns in ({"caption_column": "image"}, {"label_column": "image"}, dict.fromkeys(("label_column", "caption_column"), "a"))
        ],
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, message):
    with refused(message):
        ImageData("builtin:shapes", **settings)


BROKEN = [*gray(7), {"bytes": b"broken", "path": None}, *gray(12)]
LABELS = {"label_column": "label"}
STREAM = {"streaming": True, "held_out_fraction": 0.5}


@pytest.mark.parametrize(
    ("images", "labels", "settings", "message"),
    [
        ([*gray(9), PILImage.new("L", (9, 8))], None, {}, r"image of shape \(1, 8, [89]\).*set the data's `image_size`"),
        (BROKEN, None, {}, "Row 7 of split 'train', column 'image': the image cannot be read"),
        (gray(4), None, {"streaming": True}, "empty"),
        (gray(10), [0, 1] * 4 + [5, 5], {**LABELS, "num_classes": 3}, r"class label 5 in column 'label'.*expected 0 to 2"),
        (gray(10), [0, 1] * 4 + [5, 5], {**LABELS, **STREAM, "num_classes": 2}, "class label 5"),
        (gray(10), [0, 1] * 5, {**LABELS, **STREAM}, "set the data's `num_classes`"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_trained_on_are_refused(images, labels, settings, message, tmp_path):
    with refused(message):
        ImageData(parquet(tmp_path / "a.parquet", images, labels), **settings).setup()


def test_a_class_label_feature_names_the_classes(tmp_path):
    feature = ClassLabel(names=["cat", "dog", "emu"])
    data = ready(ImageData(parquet(tmp_path / "a.parquet", gray(4), [0, 1, 0, 1], feature), label_column="label"))
    assert (data.class_names, data.num_classes) == (["cat", "dog", "emu"], 3)


def test_splits_that_number_their_classes_otherwise_are_refused(tmp_path):
    splits = {}
    for split, names in (("train", ["a", "b", "c"]), ("test", ["b", "c"])):
        features = Features({"image": Image(), "label": ClassLabel(names=names)})
        splits[split] = Dataset.from_dict({"image": gray(4), "label": [0, 1, 0, 1]}, features=features)
    DatasetDict(splits).save_to_disk(str(tmp_path / "data"))
    with refused("Class 0 is 'a' in split 'train' and 'b' in split 'test'; have both number their classes alike"):
        ImageData(str(tmp_path / "data"), label_column="label").setup()


def test_the_rows_of_batches_are_rows_of_the_dataset():
    table = shapes(**SHAPES)
    for batch in [*_take(_shapes().train_dataloader(), 3), *_take(_shapes().val_dataloader(), 1)]:
        for image, row in zip(batch["image"], batch["index"].tolist(), strict=True):
            expected = np.asarray(table[row]["image"]).transpose(2, 0, 1) / 127.5 - 1
            np.testing.assert_allclose(image, expected, atol=1e-6)


def test_a_column_with_our_own_name_of_row_numbers_is_not_taken_for_them(tmp_path):
    columns = {"image": gray(10), "__row__": ["x"] * 10}
    features = Features({"image": Image(), "__row__": Value("string")})
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    data = ready(ImageData(str(tmp_path / "a.parquet")))
    assert sorted(
        i for held_out in (False, True) for b in data.reference_batches(99, held_out) for i in b["index"]
    ) == [*range(10)]
    with refused("'__row__', a name of its own; rename it"):
        ImageData(str(tmp_path / "a.parquet"), caption_column="__row__")


def test_of_several_captions_each_visit_of_training_draws_one(tmp_path):
    captions = [["a", "b", "c"], ["only"]]
    table = {"image": gray(8), "text": captions * 4}
    features = Features({"image": Image(), "text": List(Value("string"))})
    Dataset.from_dict(table, features=features).to_parquet(tmp_path / "a.parquet")

    def data() -> ImageData:
        return ready(ImageData(str(tmp_path / "a.parquet"), caption_column="text", batch_size=7))

    visits = [batch["caption"] for batch in _take(data().train_dataloader(), 30)]
    assert {caption for visit in visits for caption in visit} == {"a", "b", "c", "only"}
    counts = [sum(visit.count(caption) for visit in visits) for caption in "abc"]
    assert all(abs(count - sum(counts) / 3) < 4 * np.sqrt(sum(counts) * 2 / 9) for count in counts)  # standard error
    assert [batch["caption"] for batch in _take(data().train_dataloader(), 30)] == visits
    for held_out in (False, True):
        assert {c for batch in data().reference_batches(99, held_out) for c in batch["caption"]} <= {"a", "only"}
    data().check_cacheable()


@pytest.mark.parametrize("value", [[], ["a", None], None, [["a"]]])
def test_captions_that_are_none_are_refused_with_their_row(value):
    reader = row_reader(caption="text", split="train")
    with refused(r"Row 3 of split 'train' has .* in column 'text'; expected a caption"):
        reader.read({"image": gray(1)[0], "text": value}, 3)


@pytest.mark.parametrize(
    ("labels", "dtype", "told"),
    [
        ([0, 1, None] * 4, "int64", "Row 2 of split 'train' has None"),
        (["a", "b"] * 6, "string", "Row 0 of split 'train' has 'a' in column 'label'; expected integer class labels"),
        ([0, 1, 2, -1] * 3, "int64", "Row 3 of split 'train' has class label -1"),
    ],
)
def test_labels_are_refused_with_the_row_of_the_dataset(labels, dtype, told, tmp_path):
    path = parquet(tmp_path / "a.parquet", gray(12), labels, Value(dtype))
    with refused(told):
        ImageData(path, label_column="label", held_out_split="train").setup()
    with pytest.raises(ConfigurationError) as error:  # of a part of the split
        ImageData(path, label_column="label").setup()
    row = int(re.search(r"Row (\d+) of split 'train'", str(error.value))[1])
    assert labels[row] in (None, "a", "b", -1)
