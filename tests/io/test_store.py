"""Records on disk: whole or not at all, and readable by others."""

import datasets
import duckdb
import numpy as np
import pandas as pd
import pytest

from ldmprobe import Curve, ProbeRecord, RecordStore


def record(step=0, probe="ddim", value=1.0):
    curve = Curve(np.array([981, 1]), np.array([-5.0, 7.0]), np.array([value, 2.0]))
    return ProbeRecord(probe, step, scalars={"s": 3.0}, curves={"step_kl": curve}, images={"samples": [b"png"]})


def test_records_come_back_by_step(tmp_path):
    store = RecordStore(tmp_path)
    for step in (100, 0, 20):
        store.append(record(step))
    assert [found.step for found in store.read("ddim")] == [0, 20, 100]
    assert store.read("denoising") == []


def test_a_record_is_never_changed(tmp_path):
    store = RecordStore(tmp_path)
    path = store.append(record(value=1.0))
    before = path.read_bytes()
    store.append(record(value=5.0))
    assert path.read_bytes() == before


def test_a_failed_write_leaves_nothing(tmp_path):
    store = RecordStore(tmp_path)
    broken = record()
    broken.images["samples"] = [object()]  # no bytes
    with pytest.raises(Exception, match="object"):
        store.append(broken)
    assert list(store.folder.iterdir()) == []


def test_a_torn_file_is_skipped_with_a_warning_and_the_rest_read(tmp_path):
    store = RecordStore(tmp_path)
    path = store.append(record(1))
    store.append(record(2))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.warns(UserWarning, match=r"00000001.parquet is not a readable probe record and was skipped"):
        assert [found.step for found in store.read()] == [2]


def test_pandas_duckdb_and_datasets_read_all_records_as_one_table(tmp_path):
    store = RecordStore(tmp_path)
    store.append(record(1))
    store.append(record(2))
    frame = pd.read_parquet(store.folder)
    assert len(frame) == 8
    assert sorted(frame[frame.metric == "step_kl"].value) == [1.0, 1.0, 2.0, 2.0]
    assert duckdb.sql(f"select count(*) from '{store.folder}/*.parquet' where metric = 's'").fetchall() == [(2,)]
    table = datasets.load_dataset("parquet", data_files=f"{store.folder}/*.parquet", split="train")
    assert len(table) == 8
