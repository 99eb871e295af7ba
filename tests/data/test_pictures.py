"""What a file says of its pixels is read, once, or refused; and no row reads a file that is not the dataset's."""

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, features

from ldmprobe import ImageData, LatentCodec, Unconditional
from ldmprobe.data.image_files import ImageFiles
from ldmprobe.data.latent_writer import write_cache
from ldmprobe.data.pictures import AS_IS, BOOLEANS, FLATTENED, FRAMED, REDUCED, SCALED, TURNED
from tests.helpers import encoded, ready, refused, row_reader, tiny_unet

UPRIGHT = np.zeros((24, 16, 3), dtype=np.uint8)
UPRIGHT[:12, :, 0] = 255  # red above
UPRIGHT[:, :8, 2] = 255  # blue on the left
STORED = {  # by the Exif standard: where the 0th row and column of the upright picture are
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT.transpose(1, 0, 2)[::-1, ::-1],
    8: np.rot90(UPRIGHT, -1),
}


def _read(value, notes: list | None = None, **options) -> np.ndarray:
    told = None if notes is None else {"image": notes}
    return row_reader(**options).read({"image": value}, 0, notes=told)["image"].numpy()


def _turned(orientation: int, kind: str = "JPEG") -> dict:
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    options = {"quality": 95, "subsampling": 0} if kind in ("JPEG", "MPO") else {}
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [image.resize((4, 4))]}
    return encoded(image, kind, exif=exif.tobytes(), **options)


def _is_upright(tensor) -> bool:
    expected = UPRIGHT.transpose(2, 0, 1) / 127.5 - 1
    inside = np.ones((24, 16), dtype=bool)
    inside[10:14] = inside[:, 6:10] = False  # lossy formats blur the edges
    return tensor.shape == expected.shape and np.abs(tensor - expected)[:, inside].max() < 0.1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_photo_is_turned_upright_once_in_every_format(kind, orientation):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    notes: list[str] = []
    value = _turned(orientation, kind)
    assert _is_upright(_read(value, notes))
    assert np.allclose(np.asarray(_by_datasets(value)).transpose(2, 0, 1) / 127.5 - 1, _read(value), atol=1e-6)
    assert notes == ([TURNED] if orientation > 1 and kind != "TIFF" else [])  # a TIFF is turned by Pillow


def _by_datasets(value: dict) -> Image.Image:
    return ImageFeature().decode_example(value)


def test_a_picture_that_its_decoder_has_turned_is_left_as_it_is():
    """A JPEG XL file keeps the EXIF of the JPEG that it was made of, and its codestream's own orientation counts."""
    image = Image.open(io.BytesIO(_turned(6, "PNG")["bytes"]))
    image.format = "JXL"
    assert _read(image).shape == (3, 16, 24)


def test_photos_lie_on_no_side_in_training_validation_probes_and_cache(tmp_path):
    for i, orientation in enumerate([1, 3, 6, 8] * 3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{i:02d}.jpg").write_bytes(_turned(orientation)["bytes"])
    settings = {"image_size": 16, "batch_size": 4, "held_out_fraction": 0.3}
    data = ImageData(str(tmp_path / "photos"), **settings)
    with pytest.warns(UserWarning, match="are all the same"):
        data.setup()
    batches = [next(iter(data.train_dataloader())), *data.val_dataloader(), *data.reference_images(99)]
    write_cache(data, LatentCodec(), Unconditional(), tiny_unet(), tmp_path / "latents")
    cached = ready(ImageData(str(tmp_path / "photos"), latents=str(tmp_path / "latents"), **settings))
    batches += [
        {"image": batch["latent"]} for batch in [next(iter(cached.train_dataloader())), *cached.val_dataloader()]
    ]
    for batch in batches:
        corners = batch["image"][:, :, [0, 0, -1, -1], [0, -1, 0, -1]].round()
        expected = [[1, 1, -1, -1], [-1, -1, -1, -1], [1, -1, 1, -1]]
        assert (corners == corners.new_tensor(expected)).all()


# --- transparency -----------------------------------------------------------------------------------------------------


def _transparent(mode: str) -> dict:
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([0, 0, 0] * 256)
        return encoded(image, transparency=0)
    if mode == "RGB":  # one color is transparent
        return encoded(Image.new("RGB", (4, 4), (9, 9, 9)), transparency=(9, 9, 9))
    return encoded(Image.new(mode, (4, 4), 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_laid_on_the_background(mode):
    notes: list[str] = []
    assert (_read(_transparent(mode), notes, channels=3) == 1).all()
    assert notes == [FLATTENED]
    assert _read(_transparent(mode), channels=3, background="#ff8000")[:, 0, 0] == pytest.approx(
        [1, 1 / 255, -1], abs=1e-6
    )
    assert (_read(_transparent(mode), channels=1, background="black") == -1).all()
    assert (_read(_transparent(mode), channels=4)[3] == -1).all()


def test_half_transparent_is_half_of_each_before_and_after_resizing():
    image = encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 51)))
    assert _read(image, channels=3, size=4) == pytest.approx(0.6, abs=1e-6)


def test_an_opaque_picture_with_alpha_is_not_said_to_be_transparent():
    notes: list[str] = []
    assert _read(encoded(Image.new("RGBA", (4, 4), "red")), notes, channels=3)[:, 0, 0].tolist() == [1, -1, -1]
    assert notes == []


def test_a_color_that_is_none_is_refused():
    with refused("background 'snow white'"):
        ImageData("builtin:digits", background="snow white")


# --- depth, ranges, frames --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken_and_told(kind):
    notes: list[str] = []
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    value = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert _read(value, notes, channels=3)[:, 0, 0].tolist() == [1, -1, -1]
    assert notes == [FRAMED]


def test_a_16_bit_tiff_whose_zero_is_white():
    ramp = np.linspace(0, 65535, 16).round().astype(np.uint16).reshape(4, 4)
    notes: list[str] = []
    found = _read(encoded(Image.fromarray(ramp), "TIFF", tiffinfo={262: 0}), notes)
    assert found[0] == pytest.approx(1 - ramp / 32767.5, abs=1 / 127)
    assert notes == [REDUCED]


@pytest.mark.parametrize(
    ("array", "value_range", "note"),
    [
        (np.eye(4, dtype=bool), None, BOOLEANS),
        (np.eye(4, dtype=np.uint16) * 65535, None, REDUCED),
        (np.eye(4, dtype=np.int64) * 255, None, None),
        (np.eye(4, dtype=np.int64), (0, 1), SCALED),
        (np.eye(4) * 255, (0, 255), SCALED),
        (np.eye(4) * 2 - 1, None, AS_IS),
        (np.eye(4) * 2 - 1, (-1, 1), SCALED),
    ],
)
def test_black_is_minus_1_and_white_is_1_in_arrays_of_every_type(array, value_range, note):
    for value in (array, array.tolist()) if array.dtype != np.uint16 else (array,):
        notes: list[str] = []
        assert np.array_equal(_read(value, notes, value_range=value_range)[0], np.eye(4) * 2 - 1)
        assert notes == ([] if note is None else [note])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    array = np.zeros((3, 4, 4))
    array[1, 2] = bad
    with refused(r"Row 0, column 'image'.*4 of its 48 values are NaN or infinite"):
        _read(array)


@pytest.mark.parametrize("value_range", [None, (0, 1)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_picture_of_floats_that_are_not_finite_is_refused(bad, value_range):
    floats = np.full((4, 4), 0.5, dtype=np.float32)
    floats[1, 2:] = bad
    with refused(r"Row 0, column 'image'.*2 of its 16 values are NaN or infinite"):
        _read(encoded(Image.fromarray(floats), "TIFF"), value_range=value_range)


def test_floats_of_a_value_range_are_resized_and_others_refused():
    array = np.linspace(0, 1, 3 * 8 * 8).reshape(3, 8, 8)
    assert _read(array, size=4, value_range=(0, 1)).shape == (3, 4, 4)
    with refused("leave out `image_size` and `channels`, or set `value_range`"):
        _read(array, size=4)


def test_floats_are_flipped_in_training():
    array, rng = np.arange(4.0)[None, None].repeat(4, 1) - 2, np.random.default_rng(0)
    reader = row_reader(random_flip=True)
    seen = {tuple(reader.read({"image": array}, 0, rng)["image"][0, 0].tolist()) for _ in range(20)}
    assert seen == {(-2, -1, 0, 1), (1, 0, -1, -2)}


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """A dataset's own folder, and a private picture beside it."""
    for name in ("own/sub", "private"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "own/sub/a.png")
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "private/b.png")
    (tmp_path / "own/link.png").symlink_to(tmp_path / "private/b.png")
    return tmp_path


@pytest.mark.parametrize("name", ["sub/a.png", "{}/own/sub/a.png", "sub/../sub/a.png"])
def test_a_row_names_a_file_of_its_own_folder(name, folders):
    files = ImageFiles((str(folders / "own"),))
    for value in (name.format(folders), {"bytes": None, "path": name.format(folders)}):
        assert _read(value, files=files)[:, 0, 0].tolist() == [1, -1, -1]


@pytest.mark.parametrize(
    "name",
    [
        *("{}/private/b.png", "../private/b.png", "link.png", "/dev/zero", "https://example.org/a.png"),
        *("zip://a.png::https://example.org/a.zip", "file:///etc/hostname", "sub", "hf://datasets/a/b/c.png"),
    ],
)
def test_a_row_names_no_other_file(name, folders):
    with refused("Row 0, column 'image': the image cannot be read"):
        _read({"bytes": None, "path": name.format(folders)}, files=ImageFiles((str(folders / "own"),)))
    if name == "link.png":  # in a folder of one's own images, links are one's own
        assert _read(name, files=ImageFiles((str(folders / "own"),), follow_links=True)).shape == (3, 4, 4)


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
def test_a_strangers_table_does_not_make_training_read_local_images(kind, folders):
    pictures = [Image.new("RGB", (4, 4), (9 * i, 0, 0)) for i in range(20)]
    rows = [encoded(image) for image in pictures[:-1]] + [{"bytes": None, "path": str(folders / "private/b.png")}]
    table = Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature()}))
    if kind == "parquet":
        table.to_parquet(folders / "own/rows.parquet")
    else:
        _save_without_files(table, folders / "own")
    where = str(folders / "own" / ("rows.parquet" if kind == "parquet" else ""))
    with refused(r"Row 19 of split 'train'.*b\.png', which is not in"):
        ImageData(where).setup()
    data = ready(ImageData(where, image_folder=str(folders / "private")))  # unless the user says so
    assert data.image_shape == (3, 4, 4)


def _save_without_files(table: Dataset, folder: Path) -> None:
    """As ``save_to_disk``, but names of files stay names, as whoever means harm would have it."""
    table.cast_column("image", {"bytes": Value("binary"), "path": Value("string")}).save_to_disk(folder)
