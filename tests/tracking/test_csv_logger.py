"""One metrics.csv over the whole run."""

import csv

import pytest

from ldmprobe.tracking.csv_logger import ResumableCSVLogger


def rows(folder, name="metrics.csv"):
    with (folder / "lightning_logs" / "version_0" / name).open() as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def log(folder, *metrics):
    logger = ResumableCSVLogger(str(folder))
    for step, values in metrics:
        logger.log_metrics(values, step=step)
        logger.save()
    return folder / "lightning_logs" / "version_0" / "metrics.csv"


def test_a_second_logger_goes_on_with_the_file(tmp_path):
    log(tmp_path, (0, {"loss": 3.0}), (1, {"loss": 2.0}))
    log(tmp_path, (2, {"loss": 1.0}), (2, {"val": 5.0}))
    assert rows(tmp_path) == [
        {"step": "0", "loss": "3.0"},
        {"step": "1", "loss": "2.0"},
        {"step": "2", "loss": "1.0"},
        {"step": "2", "val": "5.0"},
    ]
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]


def test_a_row_that_comes_again_takes_the_old_ones_place(tmp_path):
    log(tmp_path, (0, {"loss": 3.0}), (1, {"loss": 2.0}), (1, {"val": 9.0}))
    log(tmp_path, (1, {"loss": 2.5}), (2, {"loss": 1.0}))
    assert sorted((row["step"], row.get("loss"), row.get("val")) for row in rows(tmp_path) if "loss" in row) == [
        ("0", "3.0", None),
        ("1", "2.5", None),
        ("2", "1.0", None),
    ]
    assert {"step": "1", "val": "9.0"} in rows(tmp_path)


def test_rows_of_a_past_that_was_left_are_moved_away_and_all_kept(tmp_path):
    log(tmp_path, (0, {"loss": 3.0}), (4, {"probe_ddim/kl": 8.0}), (5, {"loss": 2.0}), (9, {"loss": 1.0}))
    whole = rows(tmp_path)
    for after, new in ((4, {"val": 7.0}), (2, {"loss": 2.5})):
        logger = ResumableCSVLogger(str(tmp_path))
        logger.log_metrics(new, step=6)  # its own rows stay
        logger.set_aside(after)
        logger.save()
        logger.set_aside(after)
    assert rows(tmp_path) == [whole[0], {"step": "6", "loss": "2.5"}]
    assert rows(tmp_path, "metrics.superseded.csv") == [*whole[2:], whole[1], {"step": "6", "val": "7.0"}]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_line_that_was_cut_off_is_dropped(tmp_path, cut):
    path = log(tmp_path, (0, {"loss": 3.0}), (1, {"loss": 2.125}))
    path.write_bytes(path.read_bytes()[:-cut])
    log(tmp_path, (2, {"loss": 1.0}))
    found = [(row["step"], row["loss"]) for row in rows(tmp_path)]
    assert found in ([("0", "3.0"), ("2", "1.0")], [("0", "3.0"), ("1", "2.125"), ("2", "1.0")])


def test_an_empty_file_or_one_with_half_a_header_is_begun_anew(tmp_path):
    path = log(tmp_path, (0, {"loss": 3.0}))
    for left in (b"", b"lo"):
        path.write_bytes(left)
        log(tmp_path, (1, {"loss": 2.0}))
        assert rows(tmp_path) == [{"step": "1", "loss": "2.0"}]
