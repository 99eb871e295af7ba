"""Records' images on a page, as data URIs of a bounded size. They may be a stranger's: only PNGs are shown, and none
that is huge.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence

from PIL import Image

from ldmprobe.io.record import ProbeRecord

TOTAL_BYTES = 600_000  # of all images of a page together
_EDGES = (256, 192, 128, 96, 64, 48, 32, 16)
_IMAGE_PIXELS, _IMAGE_BYTES, _IMAGES = 2**22, 2**23, 1024  # at most, of one image; and at most so many of a record
_AS_IT_IS = 8_192  # bytes of a PNG that is not worth reducing, at its edge
_QUALITY = 80


def sample_uris(records: Sequence[ProbeRecord], name: str) -> list[list[str]]:
    """Return the images called ``name`` of each record as data URIs; one that is no PNG, or is too large, is left
    empty.

    All together have at most ``TOTAL_BYTES``: large ones are reduced to 256 pixels along the longer side or, where
    there are many, to as many as will do. Small ones stay as they are.
    """
    for edge in _EDGES:
        found: list[list[str]] = []
        total = 0
        for record in records:
            pictures = [_reduced(png, edge) for png in record.images.get(name, [])[:_IMAGES]]
            total += sum(len(content) for _, content in pictures)
            if total > TOTAL_BYTES and edge != _EDGES[-1]:
                break
            found.append([f"data:image/{kind};base64,{base64.b64encode(data).decode()}" for kind, data in pictures])
        else:
            break
    return found


def is_stacked(pngs: Sequence[bytes]) -> bool:
    """Return whether the first image is at least twice as high as wide, as those one above the other are."""
    image = opened(pngs[0]) if pngs else None
    return image is not None and image.height >= 2 * image.width


def _reduced(png: bytes, edge: int) -> tuple[str, bytes]:
    """Return the kind of image that is shown, and its bytes."""
    image = opened(png)
    if image is None:
        return "png", b""
    if max(image.size) <= edge and len(png) <= _AS_IT_IS:
        return "png", png
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((edge, edge))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY, method=2)
    return "webp", buffer.getvalue()


def opened(content: bytes) -> Image.Image | None:
    """Return the image of a PNG of a sane size; None of anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = Image.open(io.BytesIO(content), formats=["PNG"])
            if len(content) > _IMAGE_BYTES or image.width * image.height > _IMAGE_PIXELS:
                return None
            image.load()
    except Exception:  # noqa: BLE001 (PIL raises many kinds, all meaning "no PNG")
        return None
    return image
