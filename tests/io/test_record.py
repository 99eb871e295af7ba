"""The table of a ProbeRecord is tidy, and a foreign one is refused; that a record survives it is fuzzed."""

import json

import numpy as np
import pyarrow as pa
import pytest

from ldmprobe.io.record import Curve, ProbeRecord, Scatter
from ldmprobe.io.record_table import SCHEMA, SCHEMA_VERSION, from_table, to_table


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


def test_table_is_tidy():
    table = to_table(record())
    assert table.schema.equals(SCHEMA)
    assert to_table(ProbeRecord("training", 0)).schema.equals(SCHEMA)
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


def test_foreign_table_is_an_error():
    with pytest.raises(ValueError, match="not a probe record: its metadata has no key 'ldmprobe'"):
        from_table(pa.table({"metric": ["loss"], "value": [1.0]}))


def test_newer_schema_is_an_error_that_names_both():
    newer = with_header(to_table(record()), schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(
        ValueError, match=rf"newer ldmprobe \(schema {SCHEMA_VERSION + 1}, this one reads {SCHEMA_VERSION}\)"
    ):
        from_table(newer)
