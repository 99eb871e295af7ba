"""What is told of the first rows: captions, and which values are black and white."""

import numpy as np
import pytest
from datasets import Array3D, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from ldmprobe import ImageColumn, ImageData
from tests.data.test_images import gray, parquet
from tests.helpers import ready, refused


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (["a dog", None, "a cat"], "has None in column 'text'; expected a caption"),
        (["", " ", ""], "All captions of split 'train' are empty in column 'text'.*only a model without text can leave"),
    ],
)  # fmt: skip
def test_captions_that_say_nothing_are_an_error(captions, message, tmp_path):
    with refused(message):
        _captioned(10 * captions, tmp_path).setup()


def _captioned(captions: list, folder) -> ImageData:
    text = List(Value("string")) if isinstance(captions[0], list) else Value("string")
    features = Features({"image": Image(), "text": text})
    Dataset.from_dict({"image": gray(30), "text": captions}, features=features).to_parquet(folder / "rows.parquet")
    return ImageData(str(folder / "rows.parquet"), caption_column="text")


def test_all_of_a_rows_captions_are_checked(tmp_path):
    data = _captioned(10 * [["a red box", "it is on the left "]] + 20 * [["a blue box"]], tmp_path)
    data.setup()
    assert sorted(data.checked_captions) == ["a blue box"] * 20 + ["a red box"] * 10 + ["it is on the left"] * 10
    data = ImageData(data.dataset, caption_column="text", random_flip=True)
    with refused("10 of the 40 captions that were checked tell left from right, such as 'it is on the left'"):
        data.setup()


def test_captions_that_are_empty_here_and_there_are_counted(tmp_path):
    with pytest.warns(UserWarning, match="12 of the 30 captions that were checked are empty: in training") as told:
        _captioned([*["a dog"] * 18, *[""] * 7, *[" "] * 5], tmp_path).setup()
    assert len(told) == 1


def _arrays(path, images: np.ndarray, dtype: str) -> str:
    features = Features({"image": Array3D(images.shape[1:], dtype)})
    Dataset.from_dict({"image": list(images)}, features=features).to_parquet(path)
    return str(path)


PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8))


@pytest.mark.parametrize(
    ("images", "dtype", "value_range"),
    [
        (PIXELS, "uint8", None),
        (PIXELS.transpose(0, 2, 3, 1), "uint8", None),
        (PIXELS, "int64", None),
        (PIXELS * 257, "uint16", None),
        (PIXELS, "float32", (0, 255)),
        (PIXELS / 255, "float64", (0, 1)),
        (PIXELS / 127.5 - 1, "float32", None),
        (PIXELS > 127, "bool", None),
    ],
)
def test_arrays_of_any_type_become_the_same_images_and_truth_values_black_and_white(
    images, dtype, value_range, tmp_path
):
    data = ready(ImageData(_arrays(tmp_path / "a.parquet", images, dtype), value_range=value_range))
    expected = np.where(images, 1.0, -1.0) if dtype == "bool" else PIXELS / 127.5 - 1
    for held_out in (False, True):
        (batch,) = data.reference_batches(99, held_out)
        np.testing.assert_allclose(batch["image"], expected[batch["index"].numpy()], atol=1e-6)


@pytest.mark.parametrize(
    ("images", "dtype", "message"),
    [
        (PIXELS.astype(float), "float32", r"go from 0 to 255.*`value_range`, \[0, 255\]"),
        (PIXELS / 255, "float32", r"go from 0 to 1.*`value_range`, \[0, 1\]"),
        (PIXELS // 128, "int32", r"is 1 of 255, so that all images are black.*\[0, 1\]"),
        (PIXELS * 16, "uint16", r"of 65535, so that all images are black.*\[0, 4\d\d\d\]"),
        (PIXELS * 16, "int32", r"Row \d+ of split 'train'.*expected 0 to 255; set the data's `value_range`"),
        (np.where(np.arange(12)[:, None, None, None] == 5, np.nan, PIXELS - 99), "float32", r"Row 5 of split 'train'.*NaN"),
    ],
)  # fmt: skip
def test_values_that_do_not_say_which_are_black_and_white_are_refused(images, dtype, message, tmp_path):
    with refused(message):
        ImageData(_arrays(tmp_path / "a.parquet", images, dtype)).setup()


@pytest.mark.parametrize(
    ("source", "dtype", "message"),
    [
        (PIXELS / 255, "float32", r"floats in column 'drawn' .* go from 0 to 1.*`value_range` of the ImageColumn 'drawn'"),
        (PIXELS > 127, "uint8", r"brightest of the values in column 'drawn' .* is 1 of 255"),
    ],
)  # fmt: skip
def test_a_further_column_of_images_says_which_are_black_and_white_too(source, dtype, message, tmp_path):
    features = Features({"image": Array3D((3, 8, 8), "uint8"), "drawn": Array3D((3, 8, 8), dtype)})
    rows = Dataset.from_dict({"image": list(PIXELS), "drawn": list(source)}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    with refused(message):
        ImageData(str(tmp_path / "a.parquet"), columns=[ImageColumn("drawn", "source")]).setup()
    data = ready(ImageData(str(tmp_path / "a.parquet"), columns=[ImageColumn("drawn", "source", value_range=(0, 1))]))
    (batch,) = data.reference_batches(99)
    expected = source[batch["index"].numpy()] * 2.0 - 1
    np.testing.assert_allclose(batch["source"], expected, atol=1e-6)


def test_a_picture_again_and_again_is_told(tmp_path):
    match = r"\d+ {} images of split 'train' .* all the same, of the value -1 everywhere"
    with pytest.warns(UserWarning, match=match.format("training")), pytest.warns(match=match.format("held-out")):
        ImageData(parquet(tmp_path / "a.parquet", [PILImage.new("L", (8, 8))] * 12), held_out_split="train").setup()
