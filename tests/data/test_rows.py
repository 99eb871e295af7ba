"""Any picture becomes a float32 tensor in [−1, 1]."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldmprobe.data.rows import RowReader
from tests.helpers import encoded, refused, row_reader

MODES = ["1", "L", "P", "LA", "RGB", "RGBA", "I;16", "I", "F", "CMYK"]
RANGES = {"I": (0, 65535), "F": (0, 255)}  # of modes that do not say


def _reader(size=None, channels=None, **options) -> RowReader:
    return row_reader(size=size, channels=channels, **options)


def _read(value, reader: RowReader | None = None, rng=None) -> torch.Tensor:
    return (reader or _reader()).read({"image": value}, 0, rng)["image"]


def _half_white(mode: str) -> Image.Image:
    """White on the left, black on the right, 8 × 6 pixels."""
    pixels = np.zeros((6, 8), dtype=np.uint8)
    pixels[:, :4] = 255
    if mode == "I;16":
        return Image.fromarray(pixels.astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(pixels.astype(np.int32) * 257)
    image = Image.fromarray(pixels)
    return (image.convert("RGB") if mode in ("P", "CMYK") else image).convert(mode)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", MODES)
def test_white_is_1_and_black_is_minus_1_in_every_mode(mode, channels):
    image = _half_white(mode)
    assert image.mode == mode
    tensor = _read(image, _reader(channels=channels, value_range=RANGES.get(mode)))
    assert tensor.shape == (channels, 6, 8)
    assert tensor.dtype == torch.float32
    color = tensor[:3]
    assert torch.all(color[..., :4] == 1)
    assert torch.all(color[..., 4:] == -1)
    assert torch.all(tensor[3:] == 1)  # opaque


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_an_undecoded_png_reads_as_the_picture_itself(mode):
    image = _half_white(mode)
    assert torch.equal(_read(encoded(image), _reader(channels=3)), _read(image, _reader(channels=3)))


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("RGB", 3), ("RGBA", 4), ("I;16", 1), ("F", 1)]
)
def test_the_number_of_channels_is_by_default_that_of_the_picture(mode, channels):
    assert len(_read(_half_white(mode), _reader(value_range=RANGES.get(mode)))) == channels


@pytest.mark.parametrize("mode", ["P", "CMYK"])
def test_a_color_picture_stays_in_color_by_default(mode):
    red = Image.new("RGB", (4, 4), (255, 0, 0)).convert(mode)
    assert _read(red)[:, 0, 0].tolist() == [1, -1, -1]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_gray_values_of_32_bits_are_not_guessed(mode):
    with refused(r"Row 0.*do not say which are black and white; set.*`value_range`"):
        _read(_half_white(mode))
    one = Image.fromarray(np.full((4, 4), 1, dtype=np.float32)).convert(mode)
    assert _read(one, _reader(value_range=(0, 255))).max() < -0.98


def test_16_bits_keep_their_order_and_scale_however_dark():
    ramp = Image.fromarray(np.linspace(0, 9000, 64).reshape(8, 8).astype(np.uint16))
    assert ramp.mode == "I;16"
    expected = torch.linspace(-1, 9000 / 32767.5 - 1, 64).view(1, 8, 8)
    torch.testing.assert_close(_read(ramp), expected, rtol=0, atol=1 / 127.5)


def test_every_value_of_a_photo_like_picture_is_in_range():
    pixels = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    for resize in ("crop", "squash"):
        tensor = _read(Image.fromarray(pixels), _reader(size=16, resize=resize))
        assert tensor.shape == (3, 16, 16)
        assert tensor.min() >= -1
        assert tensor.max() <= 1


@pytest.mark.parametrize("layout", ["HWC", "CHW", "HW", "HW1", "list"])
def test_integer_arrays_are_pixels_in_any_layout(layout):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    value = {
        "HWC": pixels,
        "CHW": pixels.transpose(2, 0, 1),
        "HW": pixels[..., 0],
        "HW1": pixels[..., :1],
        "list": pixels.tolist(),
    }[layout]
    expected = torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1).float()
    torch.testing.assert_close(_read(value), expected[:1] if layout.startswith("HW") and layout != "HWC" else expected)


def test_float_arrays_are_taken_as_they_are():
    array = np.random.default_rng(0).normal(size=(5, 3, 3))
    tensor = _read(array, _reader())
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), array.astype(np.float32))
    np.testing.assert_array_equal(_read(array.tolist(), _reader()).numpy(), array.astype(np.float32))


def _striped() -> Image.Image:
    """24 × 12: black, a white middle half, black."""
    pixels = np.zeros((12, 24), dtype=np.uint8)
    pixels[:, 6:18] = 255
    return Image.fromarray(pixels)


def test_crop_keeps_the_middle_and_the_proportions():
    assert torch.all(_read(_striped(), _reader(size=12)) == 1)
    assert torch.all(_read(_striped(), _reader(size=6))[0, :, 1:-1] == 1)


def test_squash_keeps_everything():
    tensor = _read(_striped(), _reader(size=12, resize="squash"))
    assert tensor[0, 6, 0] < -0.9
    assert tensor[0, 6, 6] > 0.9
    assert tensor[0, 6, 11] < -0.9


def test_a_picture_of_the_right_size_is_not_resampled():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    np.testing.assert_array_equal(((_read(pixels, _reader(size=8)) + 1) * 127.5).round()[0], pixels)


def test_a_random_crop_moves_and_only_when_training():
    reader = _reader(size=12, random_crop=True)
    crops = [_read(_striped(), reader, np.random.default_rng(i)) for i in range(8)]
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) > 1
    assert torch.equal(crops[3], _read(_striped(), reader, np.random.default_rng(3)))
    assert torch.all(_read(_striped(), reader) == 1)


def test_half_of_the_training_pictures_are_flipped():
    reader, image, n = _reader(random_flip=True), _half_white("L"), 400
    flipped = sum(bool(_read(image, reader, np.random.default_rng(i))[0, 0, 0] == -1) for i in range(n))
    assert abs(flipped / n - 0.5) < 4 * np.sqrt(0.25 / n)  # standard error of a share
    assert _read(image, reader)[0, 0, 0] == 1
    assert torch.all(torch.stack([_read(image, _reader(), np.random.default_rng(i)) for i in range(20)])[..., 0] == 1)


def test_a_missing_label_is_refused_and_its_row_named():
    with refused(r"Row 4.*'label'"):
        row_reader("label").read({"image": _half_white("L"), "label": None}, 4)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"bytes": b"no picture", "path": None},
        {"bytes": None, "path": "/no/such/file.png"},
        {"bytes": encoded(_half_white("RGB"))["bytes"][:60], "path": None},
        np.array([[0, 300]]),
        np.zeros((2, 3, 4, 5), dtype=np.uint8),
        "text",
    ],
    ids=["none", "garbage", "no file", "truncated", "above 255", "four dimensions", "text"],
)
def test_an_unreadable_picture_is_refused_and_its_row_named(value):
    with refused("Row 41, column 'image': the image cannot be read"):
        _reader().read({"image": value}, 41)


def test_samples_become_a_batch():
    reader = row_reader("class", "text", "picture", channels=3)
    rows = [{"picture": _half_white("L"), "class": i, "text": f"no. {i}"} for i in range(3)]
    batch = reader.collate([reader.read(row, 10 + i) for i, row in enumerate(rows)])
    assert batch["image"].shape == (3, 3, 6, 8)
    assert set(batch) == {"image", "label", "caption", "index"}
    assert (batch["label"].tolist(), batch["index"].tolist()) == ([0, 1, 2], [10, 11, 12])
    assert (batch["label"].dtype, batch["index"].dtype) == (torch.int64, torch.int64)
    assert batch["caption"] == ["no. 0", "no. 1", "no. 2"]
    unnamed = row_reader(None, None, "picture", channels=3)
    assert set(unnamed.collate([unnamed.read(row, 10) for row in rows])) == {"image", "index"}


def test_pictures_of_different_shapes_are_refused_and_the_rows_named():
    samples = [_reader().read({"image": _half_white(mode)}, i) for i, mode in ((3, "L"), (8, "RGB"))]
    with refused(r"Row 8 .*\(3, 6, 8\), row 3 .*\(1, 6, 8\); set the data's `channels`"):
        _reader().collate(samples)
