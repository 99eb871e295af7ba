"""ProbeRecord: what a probe found. The product: on disk before any logger sees it; plots and reports read nothing else.

One record is one tidy table (and one Parquet file). A row is a number with its place:

========  ==================================================================================
column    meaning
========  ==================================================================================
probe     which probe, such as "ddim" or "denoising"
step      optimizer steps taken when it ran
metric    what was measured, such as "step_kl"; the file's metadata say what it means
index     position in sampling order (curves), or running number (images); −1 for scalars
timestep  of the noise level, −1 where there is none
log_snr   of the noise level, NaN where there is none
sample    number of the sample (scatters, images), −1 otherwise
value     the number
lower     end of its 95 % interval, NaN where none is known
upper     the other end
image     PNG bytes, null except for images
========  ==================================================================================

The file's metadata (key ``ldmprobe``) holds schema version, time, metrics, provenance and fingerprints as JSON. Its row
groups are, in this order, scalars and curves, what there is of each sample, and images, so that whoever wants a few
numbers reads no image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ldmprobe.io.metric import Metric, metric_named

SCHEMA_VERSION = 2
SCHEMA = pa.schema(
    [
        ("probe", pa.string()),
        ("step", pa.int64()),
        ("metric", pa.string()),
        ("index", pa.int32()),
        ("timestep", pa.int32()),
        ("log_snr", pa.float64()),
        ("sample", pa.int32()),
        ("value", pa.float64()),
        ("lower", pa.float64()),
        ("upper", pa.float64()),
        ("image", pa.binary()),
    ]
)


PROBE_NAME = re.compile(r"[a-z0-9_]{1,64}")  # part of a file's name
_MAX_ROWS = 20_000_000
_MAX_BYTES = 2_000_000_000  # uncompressed; a few kilobytes of Parquet can stand for as many
_COLUMNS = ("index", "timestep", "log_snr", "sample", "value", "lower", "upper")


class Part(Enum):
    """What of a record is read: its metadata, its scalars and curves too (some kilobytes), or everything."""

    HEADER, NUMBERS, ALL = range(3)


@dataclass(frozen=True)
class Curve:
    """A number per noise level, in sampling order (noisiest first). All arrays have shape (S,)."""

    timestep: np.ndarray
    log_snr: np.ndarray
    value: np.ndarray
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None


@dataclass(frozen=True)
class Scatter:
    """Two coordinates per sample at one noise level: ``xy`` (N, 2)."""

    timestep: int
    log_snr: float
    xy: np.ndarray


@dataclass(frozen=True)
class PerSample:
    """A number per noise level and sample: ``value`` (S, N), levels as a curve's. What paired comparisons are made
    of.
    """

    timestep: np.ndarray
    log_snr: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class ProbeRecord:
    """What one run of one probe found.

    Attributes:
        probe: which probe.
        step: optimizer steps taken when it ran.
        scalars, curves, scatters, per_sample, images: by metric name. A scatter is one per noise level; an image is PNG
            bytes.
        metrics: what the scalars and curves mean.
        provenance: what it was measured with: sample numbers, steps, weights, versions; plain JSON values.
        fingerprints: hashes of grid, reference, basis, codec, sampler: records are comparable where these agree.
        created: UTC, ISO 8601.

    Raises:
        ValueError: a probe whose name could not be part of a file's (``[a-z0-9_]``), or a negative step.
    """

    probe: str
    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    scatters: dict[str, list[Scatter]] = field(default_factory=dict)
    per_sample: dict[str, PerSample] = field(default_factory=dict)
    images: dict[str, list[bytes]] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if not isinstance(self.probe, str) or not PROBE_NAME.fullmatch(self.probe):
            raise ValueError(f"the probe is called {self.probe!r}; expected lower-case letters, digits and underscores")
        if not isinstance(self.step, int) or isinstance(self.step, bool) or not 0 <= self.step < 2**63:
            raise ValueError(f"the step is {self.step!r}; expected a number from 0")

    def to_table(self) -> pa.Table:
        """The tidy table described above."""
        blocks = [_block(metric, value=[value]) for metric, value in self.scalars.items()]
        for metric, curve in self.curves.items():
            blocks.append(
                _block(
                    metric,
                    index=np.arange(len(curve.value)),
                    timestep=curve.timestep,
                    log_snr=curve.log_snr,
                    value=curve.value,
                    lower=curve.lower,
                    upper=curve.upper,
                )
            )
        for metric, scatters in self.scatters.items():
            for index, scatter in enumerate(scatters):
                for axis in (0, 1):
                    n = len(scatter.xy)
                    blocks.append(
                        _block(
                            f"{metric}/pc{axis + 1}",
                            index=np.full(n, index),
                            timestep=np.full(n, scatter.timestep),
                            log_snr=np.full(n, scatter.log_snr),
                            sample=np.arange(n),
                            value=scatter.xy[:, axis],
                        )
                    )
        for metric, each in self.per_sample.items():
            levels, n = each.value.shape
            blocks.append(
                _block(
                    metric,
                    index=np.repeat(np.arange(levels), n),
                    timestep=np.repeat(each.timestep, n),
                    log_snr=np.repeat(each.log_snr, n),
                    sample=np.tile(np.arange(n), levels),
                    value=each.value.ravel(),
                )
            )
        for metric, images in self.images.items():
            n = len(images)
            blocks.append(
                _block(metric, index=np.arange(n), sample=np.arange(n), value=np.full(n, np.nan), image=images)
            )
        table = pa.concat_tables(blocks) if blocks else _block("", value=[])
        table = table.add_column(0, "probe", pa.array([self.probe] * len(table), pa.string()))
        table = table.add_column(1, "step", pa.array([self.step] * len(table), pa.int64()))
        header = {
            "schema_version": SCHEMA_VERSION,
            "probe": self.probe,
            "step": self.step,
            "created": self.created,
            "metrics": [asdict(metric) for metric in self.metrics],
            "provenance": self.provenance,
            "fingerprints": self.fingerprints,
        }
        return table.cast(SCHEMA).replace_schema_metadata({"ldmprobe": json.dumps(header)})

    def metric(self, name: str) -> Metric:
        """Return what a scalar or curve means."""
        return metric_named(name, self.metrics)

    @property
    def numbers(self) -> ProbeRecord:
        """The scalars and curves alone: some kilobytes, whatever the samples."""
        return replace(self, scatters={}, per_sample={}, images={})

    def write(self, file: BinaryIO) -> None:
        """Write the table as Parquet, in the row groups described above."""
        table = self.to_table()
        of_sample, images = pc.greater_equal(table["sample"], 0), pc.is_valid(table["image"])
        groups = (pc.invert(of_sample), pc.and_not(of_sample, images), images)
        with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
            for rows in groups:
                if len(group := table.filter(rows)):
                    writer.write_table(group, row_group_size=len(group))

    @classmethod
    def read(cls, path: Path, part: Part = Part.ALL) -> ProbeRecord:
        """The record in a Parquet file, whoever wrote it.

        Args:
            part: what of it is wanted; the rest is not read where the file keeps it apart, and left out in any case.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no Parquet, or no record; nothing else is raised, whatever the file holds.
        """
        with _opened(path) as file:
            if part is Part.ALL:
                return cls.from_table(file.read())
            schema, names = file.schema_arrow, file.schema_arrow.names
            _check_columns(names)
            if part is Part.HEADER:
                return cls.from_table(SCHEMA.empty_table().replace_schema_metadata(schema.metadata))
            groups = [i for i in range(file.num_row_groups) if _may_hold_numbers(file.metadata.row_group(i), names)]
            table = file.read_row_groups(groups, columns=[name for name in names if name != "image"])
            table = table.filter(pc.less(table["sample"].cast(pa.int32()), 0))
            return cls.from_table(table.append_column("image", pa.nulls(len(table), pa.binary())))

    @classmethod
    def from_table(cls, table: pa.Table) -> ProbeRecord:
        """The record that ``to_table`` wrote.

        Raises:
            ValueError: no ldmprobe table, of a newer schema, or one that contradicts itself; nothing else is raised,
                whatever the table holds.
        """
        metadata = (table.schema.metadata or {}).get(b"ldmprobe")
        if metadata is None:
            raise ValueError("not a probe record: its metadata has no key 'ldmprobe'")
        header = _header(metadata)
        try:
            parts = _parts(_checked(table, header))
        except ValueError:
            raise
        except Exception as error:  # pyarrow has a dozen kinds
            raise ValueError(f"a table that is no record's ({type(error).__name__}: {error})") from error
        del header["schema_version"]
        return cls(**parts, **header)


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
    """Whether a row group has rows that are of no sample, as far as its statistics tell."""
    statistics = group.column(names.index("sample")).statistics if group.num_columns == len(names) else None
    return statistics is None or not statistics.has_min_max or bool(statistics.min < 0)


def _check_columns(names: list[str]) -> None:
    missing = [name for name in SCHEMA.names if names.count(name) != 1]
    if missing:
        raise ValueError(f"expected one column {missing[0]!r}, came {names.count(missing[0])}")


def _header(metadata: bytes) -> dict[str, Any]:
    """The file's metadata, each entry of its type."""
    try:
        header = json.loads(metadata)
        json.dumps(header, ensure_ascii=False).encode()  # half a surrogate pair is JSON but no text
    except RecursionError as error:
        raise ValueError("its metadata is nested too deeply") from error
    types: dict[str, type] = {
        "schema_version": int,
        "probe": str,
        "step": int,
        "created": str,
        "metrics": list,
        "provenance": dict,
        "fingerprints": dict,
    }
    if not isinstance(header, dict):
        raise ValueError(f"its metadata is a {type(header).__name__}; expected a mapping")  # noqa: TRY004
    for key, kind in types.items():
        if not isinstance(header.get(key), kind):
            came = str(header.get(key))[:80]
            raise ValueError(f"its metadata has {key} {came!r}; expected {kind.__name__}")  # noqa: TRY004
    if header["schema_version"] > SCHEMA_VERSION:
        raise ValueError(
            f"written by a newer ldmprobe (schema {header['schema_version']}, this one reads {SCHEMA_VERSION})"
        )
    try:
        header["metrics"] = tuple(Metric(**entry) for entry in header["metrics"])
    except TypeError as error:
        raise ValueError(f"its metadata has metrics that are none ({error})") from error
    return {key: header[key] for key in types}


def _checked(table: pa.Table, header: dict[str, Any]) -> pa.Table:
    """The table's columns in the record's types, complete, and of this record alone."""
    _check_columns(table.column_names)
    table = table.select(SCHEMA.names).cast(SCHEMA)
    for name in SCHEMA.names:
        if name != "image" and table[name].null_count:
            raise ValueError(f"column {name!r} has gaps")
    for name in ("probe", "step"):
        if table[name].unique().to_pylist() not in ([], [header[name]]):
            raise ValueError(f"its rows are of another {name} than its metadata says, {header[name]}")
    return table


def _parts(table: pa.Table) -> dict[str, Any]:
    """Scalars, curves, scatters, per_sample and images of a checked table."""
    scalars: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    per_sample: dict[str, PerSample] = {}
    images: dict[str, list[bytes]] = {}
    axes: dict[str, dict[str, np.ndarray]] = {}
    metrics = np.asarray(table["metric"].to_pylist(), dtype=object)
    for metric in dict.fromkeys(metrics.tolist()):
        rows = table.filter(pa.array(metrics == metric))
        column = {name: rows[name].to_numpy() for name in _COLUMNS}
        n, index, sample = len(rows), column["index"], column["sample"]
        if rows["image"].null_count < n:
            _expect(metric, rows["image"].null_count == 0 and np.array_equal(index, np.arange(n)))
            images[metric] = rows["image"].to_pylist()
        elif metric.endswith(("/pc1", "/pc2")):
            axes[metric] = column
        elif sample[0] >= 0:
            levels = int(index.max()) + 1
            each = n // levels if levels > 0 else 0
            _expect(metric, each * levels == n and np.array_equal(index, np.repeat(np.arange(levels), each)))
            _expect(metric, np.array_equal(sample, np.tile(np.arange(each), levels)))
            value = column["value"].reshape(levels, each)
            per_sample[metric] = PerSample(column["timestep"][::each], column["log_snr"][::each], value)
        elif index[0] < 0:
            _expect(metric, n == 1)
            scalars[metric] = float(column["value"][0])
        else:
            _expect(metric, np.array_equal(index, np.arange(n)))
            ends = [None if np.isnan(column[end]).all() else column[end] for end in ("lower", "upper")]
            curves[metric] = Curve(column["timestep"], column["log_snr"], column["value"], *ends)
    scatters: dict[str, list[Scatter]] = {}
    for name in dict.fromkeys(metric[: -len("/pc1")] for metric in axes):
        _expect(name, {f"{name}/pc1", f"{name}/pc2"} <= axes.keys())
        first, second = axes[f"{name}/pc1"], axes[f"{name}/pc2"]
        _expect(name, all(np.array_equal(first[of], second[of]) for of in ("index", "timestep", "sample")))
        scatters[name] = []
        for level in np.unique(first["index"]):
            here = first["index"] == level
            xy = np.stack([first["value"][here], second["value"][here]], axis=1)
            scatters[name].append(Scatter(int(first["timestep"][here][0]), float(first["log_snr"][here][0]), xy))
    return {
        "scalars": scalars,
        "curves": curves,
        "scatters": scatters,
        "per_sample": per_sample,
        "images": images,
    }


def _expect(metric: str, consistent: bool) -> None:
    if not consistent:
        raise ValueError(f"the rows of {metric!r} do not fit together")


def _block(metric: str, **columns: Any) -> pa.Table:
    n = len(columns["value"])
    defaults: dict[str, Any] = {
        "index": np.full(n, -1),
        "timestep": np.full(n, -1),
        "log_snr": np.full(n, np.nan),
        "sample": np.full(n, -1),
        "lower": np.full(n, np.nan),
        "upper": np.full(n, np.nan),
        "image": [None] * n,
    }
    values = {**defaults, **{name: column for name, column in columns.items() if column is not None}}
    return pa.table(
        {
            "metric": pa.array([metric] * n, pa.string()),
            **{field.name: pa.array(values[field.name], field.type) for field in SCHEMA if field.name in values},
        }
    )
