"""Folders of images as they come, with captions in text files beside the images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from ldmprobe.errors import ConfigurationError
from ldmprobe.types import Batch, Rows, is_table

CAPTION = "text"
"""The column of captions that are in files beside the images."""
_CAPTION_ENDINGS = (".txt", ".caption")
_TABLE_ENDINGS = {".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".tar"}
_METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
_NEWER_ENDINGS = {".avif", ".avifs", ".heic", ".heif", ".jxl", ".qoi"}  # of pictures that `datasets` passes over


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder is of image files and what lies beside them, with no table or archive of rows.

    `datasets` takes a folder by its most frequent ending, and so for one of texts where each image has a caption beside
    it.
    """
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    endings = set(ImageFolder.EXTENSIONS)
    images, tables, passed_over = set(), [], []
    for directory, _, names in os.walk(folder):
        for name in names:
            stem, ending = os.path.splitext(os.path.join(directory, name))
            if ending.lower() in endings:
                images.add(stem)
            elif ending.lower() in _TABLE_ENDINGS and name not in _METADATA:
                tables.append(stem)
            elif ending.lower() in _NEWER_ENDINGS:
                passed_over.append(os.path.join(directory, name))
    found = bool(images) and all(stem in images for stem in tables)  # else a table of its own, not of one image
    if found and passed_over:
        warnings.warn(
            f"{len(passed_over)} files such as {passed_over[0]} are left out: the datasets library reads no images of "
            "that ending in folders; convert them to PNG, or give a table with their paths.",
            stacklevel=2,
        )
    return found


def with_captions(rows: Rows) -> Rows:
    """The rows of an image folder with the text of the file beside each image as column "text", if any image has one.

    An image without one has the caption "".
    """
    from datasets import Features, Image, Value

    if CAPTION in (rows.column_names or []):
        return rows
    undecoded = rows.cast_column("image", Image(decode=False))
    if not any(_caption_file(row["image"]["path"]) for row in _names(undecoded)):
        return rows
    features = Features({**rows.features, CAPTION: Value("string")})
    if is_table(rows):
        captions = [_caption(row["image"]["path"]) for row in _names(undecoded)]
        return rows.add_column(CAPTION, captions, feature=Value("string"))
    return undecoded.map(lambda row: {CAPTION: _caption(row["image"]["path"])}).cast(features)


def _names(rows: Rows) -> Iterator[Batch]:
    return iter(rows.select_columns(["image"]))


def _caption_file(image: str) -> str | None:
    stem = os.path.splitext(image)[0]
    return next((stem + ending for ending in _CAPTION_ENDINGS if os.path.isfile(stem + ending)), None)


def _caption(image: str) -> str:
    path = _caption_file(image)
    if path is None:
        return ""
    try:
        return " ".join(Path(path).read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The caption {path} cannot be read ({error}); write it as text in UTF-8.") from error
