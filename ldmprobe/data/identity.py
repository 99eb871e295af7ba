"""Which rows are which: a hash of each image as it is stored, by which rows are held out and data sets are told apart.

An image has the same hash in a folder, a parquet file or a stream, under any name and at any place. So rows that are
added, renamed or moved never take others to the other side, and copies of one image are on one side together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import xxhash

from ldmprobe.data.image_files import ImageFiles
from ldmprobe.errors import ConfigurationError
from ldmprobe.types import Batch, PlainValues, Rows, is_table

_PIECE = 4096  # bytes, a page; encoded images of more than three are read at their start, middle and end
_FILES_AT_ONCE = 16  # to hide the latency of network disks
_FEWEST_HELD_OUT = 2  # what a denoising probe needs
_SAMPLED = 256  # rows by which data sets are compared
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so that to multiply by it permutes the hashes

Hashes = np.ndarray  # (N,) uint64
IMAGE_HASH = "__image__"
"""The column that has the hashes of rows that were divided by them."""


# --- images ----------------------------------------------------------------------------------------------------------


def image_hashes(rows: Rows, column: str, files: ImageFiles) -> Hashes:
    """Return the hash of each row's image, without decoding it: of encoded images, in rows or in files, the size in
    bytes and 12 KiB; of arrays all values.

    Args:
        rows: a `datasets.Dataset`.
        files: the files that rows may name; of any other, the name is hashed.
    """
    wanted = np.arange(len(rows)) if rows._indices is None else rows._indices.column(0).to_numpy()
    hashes, order, start = np.zeros(len(rows), np.uint64), np.argsort(wanted, kind="stable"), 0
    in_files: dict[int, str] = {}
    for chunk in rows.data.column(column).chunks:
        first, last = np.searchsorted(wanted[order], (start, start + len(chunk)))
        here = order[first:last]
        for i, value in zip(here.tolist(), _stored(chunk, (wanted[here] - start).tolist()), strict=True):
            if isinstance(value, str):
                in_files[i] = value
            else:
                hashes[i] = xxhash.xxh3_64_intdigest(value)
        start += len(chunk)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        found = pool.map(partial(_file_hash, files=files), in_files.values(), chunksize=64)
        for i, each in zip(in_files, found, strict=True):
            hashes[i] = each
    return hashes


def image_hash(value: Any, files: ImageFiles) -> int:
    """Return the same hash of one image as a row has it: `{"bytes": …, "path": …}`, bytes, a path, or an array."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str):
        return _file_hash(value, files)
    return xxhash.xxh3_64_intdigest(_pieces(value) if isinstance(value, bytes) else _array(np.asarray(value)))


def text_hashes(values: Sequence[Any]) -> Hashes:
    """Return a hash of each plain value."""
    return np.fromiter((xxhash.xxh3_64_intdigest(repr(value).encode()) for value in values), np.uint64, len(values))


def _stored(chunk: Any, offsets: Sequence[int]) -> Iterator[bytes | str]:
    """Return what is hashed of these rows of an Arrow array, or the path of an image that is not within."""
    import pyarrow as pa

    paths = None
    if pa.types.is_struct(chunk.type):
        paths = chunk.field("path") if chunk.type.get_field_index("path") >= 0 else None
        chunk = chunk.field("bytes")
    encoded = pa.types.is_binary(chunk.type) or pa.types.is_large_binary(chunk.type)
    in_text = pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type)
    for i in offsets:
        if not encoded and not in_text:
            yield _array(_values(chunk.slice(i, 1)))
        elif (value := chunk[i]).is_valid:
            yield value.as_py() if in_text else _pieces(value.as_buffer())
        else:
            yield (paths[i].as_py() if paths is not None else None) or ""


def _values(array: Any) -> np.ndarray:
    """The values of an Arrow array of lists of any depth, flat."""
    import pyarrow as pa

    array = getattr(array, "storage", array)  # of datasets' Array2D and the like
    while isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False)


def _array(values: np.ndarray) -> bytes:
    """Numbers in one type of each kind, as it does not matter in which they were stored."""
    if values.dtype.kind in "iub":
        return values.astype(np.int64).tobytes()
    return values.astype(np.float32).tobytes() if values.dtype.kind == "f" else repr(values.tolist()).encode()


def _pieces(encoded: Any) -> bytes:
    return _pieces_of(len(encoded), lambda start, length: bytes(encoded[start : start + length]))


def _pieces_of(size: int, read: Callable[[int, int], bytes]) -> bytes:
    """Return the size and the start, middle and end of what `read(start, length)` reads."""
    starts = (0, (size - _PIECE) // 2, size - _PIECE) if size > 3 * _PIECE else (0,)
    length = _PIECE if len(starts) > 1 else size
    return b"".join([size.to_bytes(8, "little"), *(read(start, length) for start in starts)])


def _file_hash(name: str, files: ImageFiles) -> int:
    """Return the hash of an image in a file; of a file that is not there or may not be named, of its name: RowReader
    names its row.
    """
    try:
        with open(files.find(name), "rb", buffering=0) as file:
            number = file.fileno()
            return xxhash.xxh3_64_intdigest(
                _pieces_of(os.fstat(number).st_size, lambda start, length: os.pread(number, length, start))
            )
    except (OSError, ValueError):
        return xxhash.xxh3_64_intdigest(name.encode())


# --- held out --------------------------------------------------------------------------------------------------------


def is_held_out(row: Batch, column: str, fraction: float, wanted: bool, files: ImageFiles) -> bool:
    """Return whether a stream's row is held out, or is not (`wanted=False`); with probability `fraction`, by its
    image.
    """
    return (image_hash(row[column], files) < _threshold(fraction)) == wanted


def held_out_mask(hashes: Hashes, fraction: float) -> np.ndarray:
    """Return which rows are held out, shape (N,): each with probability `fraction`, always the same for one image.

    At least the two of the smallest hashes are (one, of fewer than four rows), and not all. Rows that are added take
    none that was trained on to the held-out side, unless all had a hash below the share.

    Raises:
        ConfigurationError: there are not two different images.
    """
    fewest = min(_FEWEST_HELD_OUT if len(hashes) >= 2 * _FEWEST_HELD_OUT else 1, len(hashes) - 1)
    mask = (hashes < np.uint64(_threshold(fraction))) | (hashes <= np.sort(hashes)[max(0, fewest - 1)])
    if mask.all():
        mask = hashes < hashes.max()
    if not mask.any():
        raise ConfigurationError(
            f"All {len(hashes)} rows have the same image, so that none can be held out; name a split of other images "
            "as `held_out_split`."
        )
    return mask


def _threshold(fraction: float) -> int:
    return int(fraction * 2**64)


# --- what data -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownRows:
    """The rows of a split, known by hashes.

    Attributes:
        images: of each row.
        columns: of each row's further columns, such as label and caption, by their names in batches.
        complete: whether these are all rows; of a stream they are its first.
    """

    images: Hashes
    columns: dict[str, Hashes]
    complete: bool = True

    @property
    def texts(self) -> Hashes:
        """One hash for each row's further columns."""
        texts = np.zeros(len(self.images), np.uint64)
        for hashes in self.columns.values():
            texts = texts * _MIX + hashes
        return texts

    def summary(self) -> PlainValues:
        """Plain values for checkpoints and files: number, a hash of all, and a sample: the same rows in any order."""
        texts = self.texts
        images, first = np.unique(self.images, return_index=True)
        chosen = np.argsort(images * _MIX)[:_SAMPLED]
        return {
            "rows": len(self.images),
            "all": xxhash.xxh3_64_hexdigest(self.images.tobytes() + texts.tobytes()),
            "sample": images[chosen].tolist(),
            "texts": texts[first[chosen]].tolist(),
        }

    def has(self, sample: Hashes) -> np.ndarray:
        """Return which of these images are among the rows."""
        return np.isin(sample, self.images)

    def changes(self, theirs: PlainValues, name: str, if_none: str | None = None) -> list[str]:
        """Return how these rows differ from those of a summary, in words.

        Args:
            if_none: raised as a ConfigurationError where none of theirs is among these any more.
        """
        ours = self.summary()
        if (ours["rows"], ours["all"]) == (theirs["rows"], theirs["all"]):
            return []
        sample = np.array(theirs["sample"], np.uint64)
        there = self.has(sample)
        if not self.complete:
            return [] if there.all() else [f"the stream begins with other {name} rows"]
        if if_none is not None and len(sample) and not there.any():
            raise ConfigurationError(if_none)
        told = []
        if ours["rows"] != theirs["rows"]:
            told.append(f"{theirs['rows']:,} {name} rows have become {ours['rows']:,}")
        if not there.all():
            told.append(f"{np.mean(~there):.0%} of the {name} rows then are gone")
        order = np.argsort(self.images, kind="stable")
        place = order[np.searchsorted(self.images, sample[there], sorter=order)]
        others = self.texts[place] != np.array(theirs["texts"], np.uint64)[there]
        if others.any():
            told.append(f"{np.mean(others):.0%} of the {name} rows have another label or caption")
        return told or [f"some {name} rows are others, or in another order"]


@dataclass(frozen=True)
class DataIdentity:
    """What tells the data of a run from others: its training rows and its held-out rows."""

    train: KnownRows
    held_out: KnownRows

    def summary(self) -> PlainValues:
        """Plain values, for checkpoints."""
        return {"train": self.train.summary(), "held_out": self.held_out.summary()}

    def changes(self, theirs: PlainValues) -> list[str]:
        """Return how these data differ from those of a summary, in words.

        Raises:
            ConfigurationError: rows that were trained on are held out now, or none of them is there any more.
        """
        if theirs == self.summary():
            return []
        advice = "Give the data and settings that it was trained with, or start a new run in another directory."
        if moved := self.trained_on(theirs):
            raise ConfigurationError(f"The checkpoint was trained on rows that are held out now ({moved}). {advice}")
        told = self.train.changes(theirs["train"], "training", f"The checkpoint was trained on other data. {advice}")
        told += self.held_out.changes(theirs["held_out"], "held-out")
        before = np.array(theirs["held_out"]["sample"], np.uint64)
        number = int((self.train.has(before) & ~self.held_out.has(before)).sum())
        if number and self.train.complete:
            told.append(f"{number / len(before):.0%} of the held-out rows then are trained on now")
        return told

    def trained_on(self, theirs: PlainValues) -> str | None:
        """Return how many rows that a checkpoint's summary has on the training side are on the held-out side now, in
        words.
        """
        sample = np.array(theirs["train"]["sample"], np.uint64)
        moved = int((self.held_out.has(sample) & ~self.train.has(sample)).sum())
        return (
            f"{moved} of {len(sample)} that were looked up, so that held-out numbers would flatter it"
            if moved
            else None
        )


class HashedColumn(Protocol):
    """A column whose rows have hashes."""

    @property
    def name(self) -> str: ...

    def hashes(self, rows: Rows, files: ImageFiles) -> Hashes: ...


def known_rows(rows: Rows, columns: Sequence[HashedColumn], files: ImageFiles) -> KnownRows:
    """Return the hashes of a table's rows, or of a stream's first; the first of `columns` has the images."""
    from datasets import Dataset

    complete = is_table(rows)
    if not complete:
        rows = Dataset.from_list(list(islice(rows, _SAMPLED)), features=rows.features)
    image, *others = columns
    if IMAGE_HASH in rows.column_names:  # known since the rows were divided
        images = np.asarray(rows.with_format("numpy")[IMAGE_HASH][:], np.uint64)
    else:
        images = image.hashes(rows, files)
    return KnownRows(images, {column.name: column.hashes(rows, files) for column in others}, complete)
