"""Records from strangers: read, or skipped with a sentence; and whatever is read, the report is written."""

import contextlib
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from ldmprobe.cli import main
from ldmprobe.io.record import Curve, PerSample, ProbeRecord, Scatter
from ldmprobe.io.record_file import read_record
from ldmprobe.io.record_table import SCHEMA, from_table, to_table
from ldmprobe.io.store import RecordStore
from ldmprobe.tracking.report import report_html
from tests.fuzz.cases import damaged, fuzz, json_values
from tests.io.test_record import record as valid_record
from tests.probing.gaussian import assert_same_record

PER_SAMPLE = {"error": PerSample(np.array([9, 1]), np.array([-1.0, 2.0]), np.arange(6.0).reshape(2, 3))}
TABLE = pa.concat_tables(
    [to_table(valid_record()), to_table(ProbeRecord("ddim", 1200, per_sample=PER_SAMPLE))]
).replace_schema_metadata(to_table(valid_record()).schema.metadata)
HEADER = json.loads(TABLE.schema.metadata[b"ldmprobe"])


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def is_read_or_refused(path: Path) -> ProbeRecord | None:
    """The record; or None, if reading it is refused as it should be and the store skips it with a warning."""
    try:
        record = read_record(path)
    except (OSError, ValueError):
        record = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = RecordStore(path.parent.parent).read()
    assert len(found) == (record is not None)
    assert any("was skipped" in str(warning.message) for warning in caught) == (record is None)
    return record


def _written(folder: Path, content: bytes) -> Path:
    path = folder / "probes" / "ddim-00000001.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


@fuzz(200, 20_000, st.binary(max_size=400) | damaged(parquet(TABLE)))
def test_damaged_files(folder: Path, content: bytes) -> None:
    is_read_or_refused(_written(folder, content))


# --- whole Parquet files, wrong in what they say ---------------------------------------------------------------------

EXTREMES = [-(2**31), -2, -1, 0, 1, 7, 2**31 - 1]


def _retyped(column: pa.ChunkedArray, kind: str) -> pa.Array:
    values = column.to_pylist()
    return {
        "text": lambda: pa.array([str(value) for value in values]),
        "lists": lambda: pa.array([[1, 2]] * len(values)),
        "nothing": lambda: pa.nulls(len(values)),
        "gaps": lambda: pa.array([None, *values[1:]], column.type),
        "bytes": lambda: pa.array([b"\xff\xfe"] * len(values)),
        "huge": lambda: pa.array([2**62] * len(values)),
        "dictionary": lambda: column.combine_chunks().dictionary_encode(),
        "booleans": lambda: pa.array([True] * len(values)),
    }[kind]()


KINDS = ["text", "lists", "nothing", "gaps", "bytes", "huge", "dictionary", "booleans"]


@st.composite
def tables(draw: Any) -> pa.Table:
    table = TABLE
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(SCHEMA.names))
        at = table.column_names.index(name) if table.column_names.count(name) == 1 else None
        match draw(st.sampled_from(["rows", "numbers", "retype", "drop", "twice", "rename", "metadata", "names"])):
            case "rows":
                rows = draw(st.lists(st.integers(0, len(table) - 1), max_size=len(table))) if len(table) else []
                table = table.take(pa.array(rows, pa.int64()))
            case "numbers" if at is not None and pa.types.is_integer(table[name].type):
                values = table[name].to_pylist()
                for row in draw(st.lists(st.integers(0, max(0, len(values) - 1)), max_size=4)):
                    if values:
                        values[row] = draw(st.sampled_from(EXTREMES))
                table = table.set_column(at, name, pa.array(values, table[name].type))
            case "names" if table.column_names.count("metric") == 1 and pa.types.is_string(table["metric"].type):
                metrics = table["metric"].to_pylist()
                renamed = {
                    metric: draw(st.text(max_size=6) | st.sampled_from(["a/pc1", "a/pc2", ""])) for metric in {*metrics}
                }
                column = pa.array([renamed[metric] for metric in metrics], pa.string())
                table = table.set_column(table.column_names.index("metric"), "metric", column)
            case "retype" if at is not None:
                with contextlib.suppress(pa.ArrowException):
                    table = table.set_column(at, name, _retyped(table[name], draw(st.sampled_from(KINDS))))
            case "drop" if at is not None:
                table = table.drop_columns([name])
            case "twice" if at is not None:
                table = table.append_column(name, table[name])
            case "rename" if at is not None:
                table = table.rename_columns([*table.column_names[:at], "other", *table.column_names[at + 1 :]])
            case "metadata":
                changes = draw(st.dictionaries(st.sampled_from([*HEADER]), json_values, min_size=1))
                texts = st.just(json.dumps({**HEADER, **changes}).encode()) | st.binary() | json_values.map(json.dumps)
                table = table.replace_schema_metadata({"ldmprobe": draw(texts)})
    return table


@fuzz(150, 5_000, tables())
def test_tables_of_another_shape(folder: Path, table: pa.Table) -> None:
    try:
        content = parquet(table)
    except pa.ArrowException:  # Parquet cannot say it
        return
    if (record := is_read_or_refused(_written(folder, content))) is not None:
        assert_same_record(from_table(to_table(record)), record)


# --- records that are whole, and make no sense -----------------------------------------------------------------------

METRICS = [
    "step_kl", "step_kl_ideal", "step_kl_forward", "marginal_gap", "marginal_gap_ideal", "variance_ratio/band0", "denoising_skill",
    "denoising_mse", "denoising_mmse", "denoising_nats", "calibration_residual", "training_mse", "</script><script>",
]  # fmt: skip
names = st.text(st.characters(codec="utf-8", exclude_characters="/\x00"), min_size=1, max_size=8).map("curve {}".format)
numbers = st.floats() | st.sampled_from([0.0, -1.0, np.inf, -np.inf, np.nan, 1e308])


@st.composite
def curves(draw: Any) -> Curve:
    n = draw(st.sampled_from([1, 2, 3, 3, 3]))
    columns = [np.array(draw(st.lists(numbers, min_size=n, max_size=n))) for _ in range(draw(st.sampled_from([2, 4])))]
    return Curve(np.array(draw(st.lists(st.sampled_from(EXTREMES), min_size=n, max_size=n))), *columns)


@st.composite
def errors_of_samples(draw: Any) -> PerSample:
    levels, n = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    lists = (
        st.lists(kind, min_size=k, max_size=k)
        for kind, k in ((st.sampled_from(EXTREMES), levels), (numbers, levels), (numbers, levels * n))
    )
    timestep, log_snr, value = (np.array(draw(each)) for each in lists)
    return PerSample(timestep, log_snr, value.reshape(levels, n))


@st.composite
def scatters(draw: Any) -> list[Scatter]:
    n = draw(st.integers(1, 4))
    flat = st.lists(numbers, min_size=2 * n, max_size=2 * n).map(lambda values: np.array(values).reshape(n, 2))
    return [Scatter(draw(st.sampled_from(EXTREMES)), draw(numbers), draw(flat)) for _ in range(draw(st.integers(1, 7)))]


provenance = st.dictionaries(
    st.sampled_from(["num_samples", "num_steps", "summary", "sample_labels", "pca_basis", "weights"])
    | st.text(max_size=4),
    json_values | st.lists(st.integers() | st.text(max_size=3), max_size=6),
    max_size=5,
)
records = st.builds(
    ProbeRecord,
    st.sampled_from(["ddim", "denoising", "training", "another"]),
    st.integers(0, 2**63 - 1) | st.integers(0, 9),
    scalars=st.dictionaries(st.sampled_from(["denoising_bound_nats", "pca_explained_1", "<b>"]), numbers),
    curves=st.dictionaries(st.sampled_from(METRICS) | names, curves(), max_size=4),
    scatters=st.dictionaries(st.sampled_from(["pca", "pca_real"]), scatters()),
    per_sample=st.dictionaries(st.just("errors"), errors_of_samples()),
    images=st.dictionaries(st.just("samples"), st.lists(st.binary(max_size=30), min_size=1, max_size=3)),
    provenance=provenance,
    fingerprints=st.sampled_from([{}, {"grid": "</script>"}]),
    created=st.text(max_size=10),
)


@fuzz(12, 1_000, st.lists(records, min_size=1, max_size=3))
def test_the_report_of_records_that_make_no_sense(folder: Path, strangers: list[ProbeRecord]) -> None:
    kept = [from_table(to_table(record)) for record in strangers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        html = report_html(kept, "configuration", "run")
    html.encode()
    assert "<h2>How it was measured</h2>" in html


@fuzz(
    6, 300, st.lists(damaged(parquet(TABLE)) | tables().map(parquet) | records.map(to_table).map(parquet), max_size=3)
)
def test_the_report_command(folder: Path, contents: list[bytes]) -> None:
    run_dir = folder / "run"
    (run_dir / "probes").mkdir(parents=True, exist_ok=True)
    for k in range(3):
        path = run_dir / "probes" / f"ddim-{k:08d}.parquet"
        path.write_bytes(contents[k]) if k < len(contents) else path.unlink(missing_ok=True)
    (run_dir / "config.yaml").write_bytes(contents[0][:100] if contents else b"")
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main(["report", str(run_dir)])
    assert code in (0, 2)
    told = printed.getvalue()
    assert (code == 2) == ("error: There are no probe records" in told or "; move it away" in told)


@fuzz(60, 5_000, records)
def test_a_valid_record_survives_its_file(folder: Path, record: ProbeRecord) -> None:
    path = RecordStore(folder / "run").append(record)
    found = read_record(path)
    path.unlink()
    assert json.dumps(found.provenance) == json.dumps(record.provenance)  # NaN is not itself
    assert found.created == record.created
    known = {name: without_gaps(curve) for name, curve in record.curves.items()}
    assert_same_record(replace(found, provenance=record.provenance), replace(record, curves=known))


def without_gaps(curve: Curve) -> Curve:
    """An interval that is known nowhere is none."""
    lower, upper = (None if end is None or np.isnan(end).all() else end for end in (curve.lower, curve.upper))
    return replace(curve, lower=lower, upper=upper)
