"""The tidy table of a ProbeRecord, which is also the table in its file.

One record is one tidy table (and one Parquet file). A row is a number with its place:

========  ==================================================================================
column    meaning
========  ==================================================================================
probe     which probe, such as "ddim" or "denoising"
step      optimizer steps taken when it ran
metric    what was measured, such as "step_kl"; the file's metadata say what it means
index     position in sampling order or along another axis (curves), or running number (images); −1 for scalars
timestep  of the noise level, −1 where there is none
log_snr   of the noise level, NaN where there is none
sample    number of the sample (scatters, images), −1 otherwise
value     the number
lower     end of its 95 % interval, NaN where none is known
upper     the other end
image     PNG bytes, null except for images
========  ==================================================================================

The file's metadata (key ``ldmprobe``) holds schema version, time, metrics, provenance and fingerprints as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from ldmprobe.io.metric import metric_from
from ldmprobe.io.record import Curve, PerSample, ProbeRecord, Scatter
from ldmprobe.types import PlainValues

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

Values = Sequence[object] | np.ndarray
_COLUMNS = ("index", "timestep", "log_snr", "sample", "value", "lower", "upper")


def to_table(record: ProbeRecord) -> pa.Table:
    """Return the tidy table described above."""
    blocks = [_block(metric, value=[value]) for metric, value in record.scalars.items()]
    for metric, curve in record.curves.items():
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
    for metric, scatters in record.scatters.items():
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
    for metric, each in record.per_sample.items():
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
    for metric, images in record.images.items():
        n = len(images)
        blocks.append(_block(metric, index=np.arange(n), sample=np.arange(n), value=np.full(n, np.nan), image=images))
    table = pa.concat_tables(blocks) if blocks else _block("", value=[])
    table = table.add_column(0, "probe", pa.array([record.probe] * len(table), pa.string()))
    table = table.add_column(1, "step", pa.array([record.step] * len(table), pa.int64()))
    header = {
        "schema_version": SCHEMA_VERSION,
        "probe": record.probe,
        "step": record.step,
        "created": record.created,
        "metrics": [asdict(metric) for metric in record.metrics],
        "provenance": record.provenance,
        "fingerprints": record.fingerprints,
    }
    return table.cast(SCHEMA).replace_schema_metadata({"ldmprobe": json.dumps(header)})


def from_table(table: pa.Table) -> ProbeRecord:
    """Return the record that ``to_table`` wrote.

    Raises:
        ValueError: no ldmprobe table, of a newer schema, or one that contradicts itself; nothing else is raised,
            whatever the table holds.
    """
    metadata = (table.schema.metadata or {}).get(b"ldmprobe")
    if metadata is None:
        raise ValueError("not a probe record: its metadata has no key 'ldmprobe'")
    header = _header(metadata)
    try:
        return _record(_checked(table, header), header)
    except ValueError:
        raise
    except Exception as error:  # pyarrow has a dozen kinds
        raise ValueError(f"a table that is no record's ({type(error).__name__}: {error})") from error


def check_columns(names: list[str]) -> None:
    missing = [name for name in SCHEMA.names if names.count(name) != 1]
    if missing:
        raise ValueError(f"expected one column {missing[0]!r}, came {names.count(missing[0])}")


def _header(metadata: bytes) -> PlainValues:
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
        header["metrics"] = tuple(map(metric_from, header["metrics"]))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"its metadata has metrics that are none ({error})") from error
    return {key: header[key] for key in types if key != "schema_version"}


def _checked(table: pa.Table, header: PlainValues) -> pa.Table:
    """The table's columns in the record's types, complete, and of this record alone."""
    check_columns(table.column_names)
    table = table.select(SCHEMA.names).cast(SCHEMA)
    for name in SCHEMA.names:
        if name != "image" and table[name].null_count:
            raise ValueError(f"column {name!r} has gaps")
    for name in ("probe", "step"):
        if table[name].unique().to_pylist() not in ([], [header[name]]):
            raise ValueError(f"its rows are of another {name} than its metadata says, {header[name]}")
    return table


def _record(table: pa.Table, header: PlainValues) -> ProbeRecord:
    """The record of a checked table, with what the header says of it."""
    scalars: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    per_sample: dict[str, PerSample] = {}
    images: dict[str, list[bytes]] = {}
    axes: dict[str, dict[str, np.ndarray]] = {}
    encoded = table["metric"].combine_chunks().dictionary_encode()
    which, whole = encoded.indices.to_numpy(), {name: table[name].to_numpy() for name in _COLUMNS}
    pictured = table["image"].is_valid().to_numpy()
    of_metric = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
    for metric, rows in zip(encoded.dictionary.to_pylist(), of_metric, strict=False):
        column = {name: values[rows] for name, values in whole.items()}
        n, index, sample = len(rows), column["index"], column["sample"]
        if pictured[rows].any():
            _expect(metric, pictured[rows].all() and np.array_equal(index, np.arange(n)))
            images[metric] = table["image"].take(rows).to_pylist()
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
    return ProbeRecord(
        scalars=scalars, curves=curves, scatters=scatters, per_sample=per_sample, images=images, **header
    )


def _expect(metric: str, consistent: bool) -> None:
    if not consistent:
        raise ValueError(f"the rows of {metric!r} do not fit together")


def _block(metric: str, value: Values, **places: Values | None) -> pa.Table:
    """The rows of a metric; in a column that is not given, or is None, they have what the table above says of none."""
    n = len(value)
    none = {"index": -1, "timestep": -1, "log_snr": np.nan, "sample": -1, "lower": np.nan, "upper": np.nan}
    columns: dict[str, Values] = {name: np.full(n, number) for name, number in none.items()}
    columns |= {"metric": [metric] * n, "value": value, "image": [None] * n}
    columns |= {name: column for name, column in places.items() if column is not None}
    return pa.table(
        {field.name: pa.array(columns[field.name], field.type) for field in SCHEMA if field.name in columns}
    )
