"""A ProbeRecord survives its table, also on disk."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmprobe.io.record import Curve, ProbeRecord, Scatter
from ldmprobe.io.record_table import SCHEMA, SCHEMA_VERSION, from_table, to_table
from tests.probing.gaussian import assert_same_record


def record() -> ProbeRecord:
    t, log_snr, value = np.array([900, 500, 1]), np.array([-4.0, 0.5, 6.0]), np.array([0.1, np.nan, 0.3])
    xy = np.random.default_rng(0).normal(size=(2, 4, 2))
    return ProbeRecord(
        "ddim",
        1200,
        scalars={"bound": 3.25, "nothing": float("nan")},
        curves={"plain": Curve(t, log_snr, value), "sure": Curve(t, log_snr, value, value - 0.1, value + 0.1)},
        scatters={"pca": [Scatter(900, -4.0, xy[0]), Scatter(0, float("nan"), xy[1])]},
        images={"samples": [b"\x89PNG one", b"\x89PNG two"]},
        provenance={"num_samples": 4, "weights": "ema", "labels": [0, 1], "nested": {"α": None}},
        fingerprints={"grid": "0123"},
    )


def with_header(table: pa.Table, **changes) -> pa.Table:
    header = {**json.loads(table.schema.metadata[b"ldmprobe"]), **changes}
    return table.replace_schema_metadata({"ldmprobe": json.dumps(header)})


def test_record_survives_its_table():
    again = from_table(to_table(record()))
    assert_same_record(again, record())


def test_time_of_creation_survives_the_table():
    then = replace(record(), created="2024-02-29T12:00:00+00:00")
    assert from_table(to_table(then)).created == "2024-02-29T12:00:00+00:00"


def test_record_survives_a_parquet_file():
    file = io.BytesIO()
    pq.write_table(to_table(record()), file)
    assert_same_record(from_table(pq.read_table(file)), record())


def test_interval_is_known_only_where_it_was_given():
    curves = from_table(to_table(record())).curves
    assert curves["plain"].lower is None
    assert curves["plain"].upper is None
    np.testing.assert_array_equal(curves["sure"].upper, record().curves["sure"].upper)


def test_table_is_tidy():
    table = to_table(record())
    assert table.schema.equals(SCHEMA)
    assert set(table["probe"].to_pylist()) == {"ddim"}
    assert set(table["step"].to_pylist()) == {1200}
    rows = [row for row in table.to_pylist() if row["metric"] == "sure"]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert [row["timestep"] for row in rows] == [900, 500, 1]
    assert rows[0]["lower"] == 0.0
    assert len(table) == 2 + 2 * 3 + 2 * 2 * 4 + 2
    points = [row for row in table.to_pylist() if row["metric"] == "pca/pc2" and row["timestep"] == 900]
    assert [row["sample"] for row in points] == [0, 1, 2, 3]
    assert [row["value"] for row in points] == record().scatters["pca"][0].xy[:, 1].tolist()


def test_empty_record_survives_its_table():
    empty = ProbeRecord("training", 0)
    assert_same_record(from_table(to_table(empty)), empty)
    assert to_table(empty).schema.equals(SCHEMA)


def test_foreign_table_is_an_error():
    with pytest.raises(ValueError, match="not a probe record: its metadata has no key 'ldmprobe'"):
        from_table(pa.table({"metric": ["loss"], "value": [1.0]}))


def test_newer_schema_is_an_error_that_names_both():
    newer = with_header(to_table(record()), schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(
        ValueError, match=rf"newer ldmprobe \(schema {SCHEMA_VERSION + 1}, this one reads {SCHEMA_VERSION}\)"
    ):
        from_table(newer)


names = st.text(st.characters(codec="utf-8", exclude_characters="/\x00"), min_size=1, max_size=8)
numbers = st.floats(width=64)
timesteps = st.integers(0, 999)


@st.composite
def curves(draw) -> Curve:
    n = draw(st.integers(1, 4))
    columns = [np.array(draw(st.lists(numbers, min_size=n, max_size=n))) for _ in range(2)]
    ends: list = [None, None]
    if draw(st.booleans()):
        ends = [np.array(draw(st.lists(st.floats(-1e9, 1e9), min_size=n, max_size=n))) for _ in range(2)]
    return Curve(np.array(draw(st.lists(timesteps, min_size=n, max_size=n))), *columns, *ends)


@st.composite
def scatters(draw) -> list[Scatter]:
    shape = (draw(st.integers(1, 3)), 2)
    flat = st.lists(numbers, min_size=shape[0] * 2, max_size=shape[0] * 2)
    return [
        Scatter(draw(timesteps), draw(numbers), np.array(draw(flat)).reshape(shape))
        for _ in range(draw(st.integers(1, 3)))
    ]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_record_survives_its_table(data):
    metrics = data.draw(st.lists(names, unique=True, max_size=6))
    kinds = {name: data.draw(st.sampled_from(["scalars", "curves", "scatters", "images"])) for name in metrics}
    content = {
        "scalars": numbers,
        "curves": curves(),
        "scatters": scatters(),
        "images": st.lists(st.binary(max_size=5), min_size=1, max_size=3),
    }
    parts: dict = {
        kind: {name: data.draw(content[kind]) for name in metrics if kinds[name] == kind} for kind in content
    }
    given_record = ProbeRecord(
        data.draw(st.from_regex("[a-z0-9_]{1,64}", fullmatch=True)), data.draw(st.integers(0, 2**40)), **parts
    )
    assert_same_record(from_table(to_table(given_record)), given_record)
