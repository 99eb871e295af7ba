"""The Parquet file of a ProbeRecord.

Its row groups are, in this order, scalars and curves, what there is of each sample, and images, so that whoever wants a
few numbers reads no image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.record_table import SCHEMA, check_columns, from_table, to_table

_MAX_ROWS = 20_000_000
_MAX_BYTES = 2_000_000_000  # uncompressed; a few kilobytes of Parquet can stand for as many


class Part(Enum):
    """The part of a record that is read: its metadata, its scalars and curves too (some kilobytes), or everything."""

    HEADER, NUMBERS, ALL = range(3)


def write_record(record: ProbeRecord, file: BinaryIO) -> None:
    """Write the table as Parquet, in the row groups described above."""
    table = to_table(record)
    of_sample, images = pc.greater_equal(table["sample"], 0), pc.is_valid(table["image"])
    groups = (pc.invert(of_sample), pc.and_not(of_sample, images), images)
    with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        for rows in groups:
            if len(group := table.filter(rows)):
                writer.write_table(group, row_group_size=len(group))


def read_record(path: Path, part: Part = Part.ALL) -> ProbeRecord:
    """Return the record in a Parquet file, whoever wrote it.

    Args:
        part: what of it is wanted; the rest is not read where the file keeps it apart, and left out in any case.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no Parquet, or no record; nothing else is raised, whatever the file holds.
    """
    with _opened(path) as file:
        if part is Part.ALL:
            return from_table(file.read())
        schema, names = file.schema_arrow, file.schema_arrow.names
        check_columns(names)
        if part is Part.HEADER:
            return from_table(SCHEMA.empty_table().replace_schema_metadata(schema.metadata))
        groups = [i for i in range(file.num_row_groups) if _may_hold_numbers(file.metadata.row_group(i), names)]
        table = file.read_row_groups(groups, columns=[name for name in names if name != "image"])
        table = table.filter(pc.less(table["sample"].cast(pa.int32()), 0))
        return from_table(table.append_column("image", pa.nulls(len(table), pa.binary())))


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file of a size that a probe writes; whatever is wrong with it is an OSError or a ValueError."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")  # reading a pipe or a device would never end
    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            rows, size = file.metadata.num_rows, sum(group.total_byte_size for group in groups)
            if rows > _MAX_ROWS or size > _MAX_BYTES:
                raise ValueError(f"{rows:,} rows of {size:,} bytes are more than a probe finds")
            yield file
    except (OSError, ValueError):
        raise
    except Exception as error:  # pyarrow has a dozen kinds
        raise ValueError(f"not readable as Parquet ({type(error).__name__}: {error})") from error


def _may_hold_numbers(group: pq.RowGroupMetaData, names: list[str]) -> bool:
    """Return whether a row group has rows that are of no sample, as far as its statistics tell."""
    statistics = group.column(names.index("sample")).statistics if group.num_columns == len(names) else None
    return statistics is None or not statistics.has_min_max or bool(statistics.min < 0)
