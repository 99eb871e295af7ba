"""Histories cost the same however long they are: which records are chosen, what of them is read, and that a resume
chooses alike."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ldmprobe.io.record import Curve, PerSample, ProbeRecord, Scatter
from ldmprobe.io.record_file import Part, read_record
from ldmprobe.io.record_table import to_table
from ldmprobe.io.store import RecordStore
from ldmprobe.tracking.history import RunningHistory, comparable_series, thinned
from ldmprobe.tracking.loggers import log_record


def record(step, probe="ddim", grid="a"):
    levels = np.array([9, 1]), np.array([-1.0, 2.0])
    return ProbeRecord(
        probe,
        step,
        scalars={"s": float(step)},
        curves={"step_kl": Curve(*levels, np.array([step + 1.0, 2.0]))},
        scatters={"pca": [Scatter(9, -1.0, np.ones((4, 2)))]},
        per_sample={"errors": PerSample(*levels, np.ones((2, 4)))},
        images={"samples": [b"a picture" * 1000]},
        fingerprints={"grid": grid},
    )


@pytest.fixture
def read(monkeypatch):
    """Paths and parts of the records that are read."""
    calls = []

    def reading(path, part=Part.ALL):
        calls.append((int(path.stem[-8:]), part))
        return read_record(path, part)

    for module in ("ldmprobe.io.store", "ldmprobe.tracking.history"):
        monkeypatch.setattr(f"{module}.read_record", reading)
    return calls


@pytest.mark.parametrize("at_most", [2, 8, 9, 64])
def test_what_is_left_out_stays_out_and_the_last_is_always_there(at_most):
    before: set[int] = set()
    for n in range(1, 400):
        chosen = thinned(range(n), at_most)
        assert chosen[-1] == n - 1
        assert chosen[0] == 0
        assert min(n, at_most) / 2 <= len(chosen) <= at_most
        assert len({*np.diff(chosen[:-1])}) <= 1
        assert {*chosen[:-1]} <= before | {n - 2}
        before = {*chosen}


def test_a_probe_reads_no_earlier_record_and_a_resume_chooses_the_same(tmp_path, read):
    records, running = RecordStore(tmp_path), RunningHistory(RecordStore(tmp_path), at_most=8)
    for step in range(40):
        records.append(record(step))
        whole = running.upto(record(step))
        assert len(whole) <= 8
        assert not any(each.images or each.scatters or each.per_sample for each in whole)
    assert read == []
    resumed = RunningHistory(RecordStore(tmp_path), at_most=8).upto(record(39))
    assert [each.step for each in resumed] == [each.step for each in whole] == [0, 8, 16, 24, 32, 39]
    assert [each.curves["step_kl"].value.tolist() for each in resumed] == [
        [s + 1.0, 2.0] for s in (0, 8, 16, 24, 32, 39)
    ]
    assert read == [(step, Part.NUMBERS) for step in (0, 8, 16, 24, 32)]


def test_what_was_measured_otherwise_is_no_history(tmp_path):
    records = RecordStore(tmp_path)
    for step in range(4):
        records.append(record(step, grid="a" if step < 2 else "b"))
    assert [each.step for each in RunningHistory(records).upto(record(3, grid="b"))] == [2, 3]


def test_a_logger_that_draws_no_history_reads_none(tmp_path, read):
    records = RecordStore(tmp_path)
    for step in range(3):
        records.append(record(step, "denoising"))
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tensorboard")]
    log_record(loggers, ProbeRecord("denoising", 2, scalars={"s": 1.0}), RunningHistory(records), 2)
    assert read == []


def test_a_users_own_tensorboard_is_sent_the_pictures_that_its_base_is(tmp_path):
    logger = type("Own", (TensorBoardLogger,), {})(tmp_path, "tensorboard")
    records, sent = RecordStore(tmp_path), []
    logger.experiment.add_image = lambda name, *args, **kwargs: sent.append(name)
    records.append(record(0, "denoising"))
    log_record([logger], records.read("denoising")[-1], RunningHistory(records), 0)
    assert sent


def test_numbers_and_headers_are_read_without_the_images(tmp_path, monkeypatch):
    path = RecordStore(tmp_path).append(record(3))
    whole, sizes = record(3), []
    real = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_groups",
        lambda self, groups, columns: sizes.append((groups, columns)) or real(self, groups, columns),
    )
    numbers, header = (read_record(path, part) for part in (Part.NUMBERS, Part.HEADER))
    assert numbers.scalars == whole.scalars
    assert numbers.curves["step_kl"].value.tolist() == whole.curves["step_kl"].value.tolist()
    assert not numbers.images
    assert not numbers.scatters
    assert not numbers.per_sample
    assert [groups for groups, _ in sizes] == [[0]]
    assert "image" not in sizes[0][1]
    assert (header.step, header.fingerprints, header.curves) == (3, whole.fingerprints, {})
    assert pq.ParquetFile(path).num_row_groups == 3
    # As written until now, all in one row group.
    pq.write_table(to_table(whole), path)
    old = read_record(path, Part.NUMBERS)
    assert (old.scalars, [*old.curves], old.images) == (whole.scalars, ["step_kl"], {})


def test_a_series_keeps_no_record_and_the_previous_one_is_the_only_one_read(tmp_path, read):
    records = RecordStore(tmp_path)
    for step in range(6):
        records.append(record(step, "denoising", "a" if step < 2 else "b"))
    series = comparable_series(records)["denoising"]
    assert {part for _, part in read} == {Part.HEADER}
    assert (series.steps, len(series), series[1:].steps) == ([2, 3, 4, 5], 4, [3, 4, 5])
    assert comparable_series(records, until=1)["denoising"].steps == [0, 1]
    read.clear()
    assert [each.step for each in series] == [2, 3, 4, 5]
    assert series[-1].images
    read.clear()
    assert records.last_before("denoising", 5).step == 4
    assert records.last_before("denoising", 5, lambda step: step % 3 == 0).step == 3
    assert records.last_before("denoising", 0) is None
    assert read == [(4, Part.ALL), (3, Part.ALL)]
