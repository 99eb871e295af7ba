"""A hash of each image as it is stored, without decoding it.

An image has the same hash in a folder, a parquet file or a stream, under any name and at any place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from ldmprobe.data.image_files import ImageFiles
from ldmprobe.types import Rows

if TYPE_CHECKING:
    import pyarrow as pa

_PIECE = 4096  # bytes, a page; encoded images of more than three are read at their start, middle and end
_FILES_AT_ONCE = 16  # to hide the latency of network disks

Hashes = np.ndarray  # (N,) uint64


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


def image_hash(value: object, files: ImageFiles) -> int:
    """Return the same hash of one image as a row has it: `{"bytes": …, "path": …}`, bytes, a path, or an array."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str):
        return _file_hash(value, files)
    return xxhash.xxh3_64_intdigest(_pieces(value) if isinstance(value, bytes) else _array(np.asarray(value)))


def text_hashes(values: Sequence[object]) -> Hashes:
    """Return a hash of each plain value."""
    return np.fromiter((xxhash.xxh3_64_intdigest(repr(value).encode()) for value in values), np.uint64, len(values))


def _stored(chunk: pa.Array, offsets: Sequence[int]) -> Iterator[bytes | str]:
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


def _values(array: pa.Array) -> np.ndarray:
    """The values of an Arrow array of lists of any depth, flat."""
    import pyarrow as pa

    if isinstance(array, pa.ExtensionArray):  # datasets' Array2D and the like
        array = array.storage
    while isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False)


def _array(values: np.ndarray) -> bytes:
    """Numbers in one type of each kind, as it does not matter in which they were stored."""
    if values.dtype.kind in "iub":
        return values.astype(np.int64).tobytes()
    return values.astype(np.float32).tobytes() if values.dtype.kind == "f" else repr(values.tolist()).encode()


def _pieces(encoded: bytes | pa.Buffer) -> bytes:
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
