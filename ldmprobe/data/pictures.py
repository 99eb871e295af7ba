"""Pictures: from what a row holds (bytes, a file's name, an array) to an upright picture of 8 bits or an array of
floats.

Everything that a file says about its pixels is read here, once: orientation, transparency, frames, depth. What was read
is returned as notes, so that it can be told.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import (
    ExifTags,
    GifImagePlugin,
    Image,
    ImageOps,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from ldmprobe.data.image_files import ImageFiles

TURNED = "turned as their EXIF orientation says"
FLATTENED = "with transparency, laid on the background"
FRAMED = "of several frames, of which the first is taken"
REDUCED = "of 16 bits, scaled down to 8"
SCALED = "of numbers, scaled from their value range"
BOOLEANS = "of booleans, of which False is black and True is white"
AS_IS = "of floats, taken as they are"

Range = tuple[float, float]
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CHANNELS = {"P": 3, "PA": 3, "CMYK": 3, "LA": 1, "La": 1, "RGBa": 4}  # of modes whose bands are not their channels
_EIGHT_BITS: Range = (0, 255)
_DTYPE_RANGES: dict[str, Range] = {"bool": (0, 1), "uint16": (0, 65535)}
_OF_DTYPE = {"bool": BOOLEANS, "uint16": REDUCED}  # what is told of arrays that have the range of their type
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def opened(value: object, files: ImageFiles, notes: list[str]) -> Image.Image | np.ndarray:
    """Return the upright picture, loaded, or the array of numbers that a row's `value` is.

    Raises:
        Exception: of many kinds; it is neither.
    """
    if isinstance(value, dict):  # undecoded: {"bytes": ..., "path": ...}
        value = value["bytes"] if value.get("bytes") else value["path"]
    if value is None:
        raise ValueError("there is none")
    if isinstance(value, (str, bytes)):
        try:
            value = Image.open(
                files.find(value) if isinstance(value, str) else io.BytesIO(value), formats=_readable_formats()
            )
        except UnidentifiedImageError:
            raise ValueError(f"it is in no format that Pillow {Image.__version__} reads, or damaged") from None
    if isinstance(value, Image.Image):
        if _has_more_frames(value):
            notes.append(FRAMED)
        return _upright(value, notes)
    array = np.asarray(value)
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(
            "expected an image, bytes, a file's name or an array (H, W), (H, W, C) or (C, H, W), got "
            f"{_kind(value, array)}"
        )
    return array


def _kind(value: object, array: np.ndarray) -> str:
    if array.dtype.kind in "buif":
        return f"an array of shape {array.shape}"
    return f"a list of {type(value[0]).__name__}" if isinstance(value, list) and value else type(value).__name__


def _has_more_frames(image: Image.Image) -> bool:
    """Return whether it is animated or of several pages; MPO is what cameras make of one photo and its previews."""
    return image.format != "MPO" and bool(vars(image).get("is_animated", False) or _is_animated_lazily(image))


def _is_animated_lazily(image: Image.Image) -> bool:
    return isinstance(image, (GifImagePlugin.GifImageFile, TiffImagePlugin.TiffImageFile)) and image.is_animated


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    """Turn the picture upright once. Loading comes first: formats that Pillow turns by itself (TIFF, HEIF) then say no
    orientation any more. A JPEG XL codestream is turned by its decoder, whatever its EXIF says; a JPEG that it was made
    of, and that is restored from it, is not.
    """
    image.load()
    turned_by_decoder = image.format == "JXL" and not vars(image).get("jpeg", False)
    if turned_by_decoder or image.getexif().get(ExifTags.Base.Orientation, 1) not in range(2, 9):
        return image
    notes.append(TURNED)
    turned = ImageOps.exif_transpose(image)
    turned.format = image.format
    return turned


def in_eight_bits(
    image: Image.Image, channels: int | None, background: str, value_range: Range | None, notes: list[str]
) -> Image.Image:
    """Return the picture as L, RGB or RGBA; `channels` None keeps its own. Transparency that is not kept is laid on
    `background`.

    Raises:
        ValueError: of 32 bits without `value_range`, or values outside it or not finite.
    """
    if image.mode.startswith("I") or image.mode == "F" or value_range not in (None, _EIGHT_BITS):
        image = _scaled_down(image, value_range, notes)
    channels = channels or _CHANNELS.get(image.mode, len(image.getbands()))
    if image.has_transparency_data and channels != 4:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            notes.append(FLATTENED)
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert(_MODES[channels])


def _scaled_down(image: Image.Image, value_range: Range | None, notes: list[str]) -> Image.Image:
    """Scale the values of `value_range`, or of what the format says, to 0 … 255; Pillow's own conversion clips at
    255.
    """
    if image.has_transparency_data or not (image.mode in ("1", "L", "RGB", "F") or image.mode.startswith("I")):
        raise ValueError(f"`value_range` is for numbers, not for a picture of mode {image.mode}; leave it out")
    notes.append(REDUCED if value_range is None else SCALED)
    values = _finite(np.asarray(image, dtype=np.float64))
    fraction = _fraction(values, value_range or _range_of_format(image))
    if value_range is None and _white_is_zero(image):
        fraction = 1 - fraction
    return Image.fromarray((fraction * 255).round().astype(np.uint8))


def _range_of_format(image: Image.Image) -> Range:
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_TIFF_BITS) == (12,):
        return 0, 4095
    of_16_bits = (PngImagePlugin.PngImageFile, PpmImagePlugin.PpmImageFile)  # as older Pillows open them
    if image.mode.startswith("I;16") or (image.mode == "I" and isinstance(image, of_16_bits)):
        return 0, 65535
    raise ValueError(
        f"gray values of 32 bits (mode {image.mode}), here from {np.asarray(image).min():g} to "
        f"{np.asarray(image).max():g}, do not say which are black and white; set the data's `value_range`, such as [0, "
        "65535] or [0, 1]"
    )


def _white_is_zero(image: Image.Image) -> bool:
    """Return whether Pillow left it to us: it inverts those of 8 bits."""
    return (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.mode.startswith("I;16")
        and image.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    )


def of_array(array: np.ndarray, value_range: Range | None, notes: list[str]) -> Image.Image | np.ndarray:
    """Return an array of whole numbers as a picture of 8 bits, one of floats as float32 (C, H, W).

    Of floats, `value_range` becomes [−1, 1]; without one they stay as they are. Of whole numbers, it is by default that
    of their type.

    Raises:
        ValueError: not finite, or outside the range.
    """
    floats = array.dtype.kind == "f"
    array = _finite(array)
    if floats and value_range is None:
        notes.append(AS_IS)
        return _channels_first(array)
    chosen = value_range or _DTYPE_RANGES.get(array.dtype.name, _EIGHT_BITS)
    fraction = _fraction(array.astype(np.float64), chosen)
    if floats or chosen != _EIGHT_BITS:
        notes.append(_OF_DTYPE.get(array.dtype.name, SCALED) if value_range is None else SCALED)
    if floats or _channels_first(array).shape[0] not in _MODES:
        return _channels_first(fraction * 2 - 1)
    return Image.fromarray(_channels_last((fraction * 255).round().astype(np.uint8)))


def of_floats(floats: np.ndarray, value_range: Range | None) -> Image.Image:
    """Return floats (C, H, W) in [−1, 1] as a picture of 8 bits, so that its size and channels can be changed.

    Raises:
        ValueError: they were taken as they are, or their channels are not those of a picture.
    """
    if value_range is None or floats.shape[0] not in _MODES:
        raise ValueError(
            f"an array of shape {floats.shape} of floats that are taken as they are is not resized nor given other "
            "channels; leave out `image_size` and `channels`, or set `value_range` if they are pixels of 1, 3 or 4 "
            "channels"
        )
    return Image.fromarray(_channels_last(((floats + 1) * 127.5).round().astype(np.uint8)))


def _channels_first(array: np.ndarray) -> np.ndarray:
    array = array[None] if array.ndim == 2 else array
    if array.shape[0] not in _MODES and array.shape[2] in _MODES and array.shape[1] != array.shape[2]:
        array = array.transpose(2, 0, 1)
    return np.ascontiguousarray(array, dtype=np.float32)


def _channels_last(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3 and array.shape[0] in _MODES and array.shape[2] not in _MODES:
        array = array.transpose(1, 2, 0)
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _finite(array: np.ndarray) -> np.ndarray:
    """Return the array, unless values of it are NaN or infinite: they are in no range, and no comparison tells."""
    if wrong := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{wrong} of its {array.size} values are NaN or infinite")
    return array


def _fraction(array: np.ndarray, value_range: Range) -> np.ndarray:
    low, high = value_range
    if array.min() < low or array.max() > high:
        raise ValueError(
            f"values from {array.min():g} to {array.max():g}, expected {low:g} to {high:g}; set the data's "
            "`value_range` to those of black and white"
        )
    return (array - low) / (high - low)


@cache
def _readable_formats() -> list[str]:
    """Return all formats that Pillow reads but EPS, which is a program, and which Ghostscript would run."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]
