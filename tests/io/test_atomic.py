"""Files that are there whole or not at all, whoever else writes them."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from threading import Barrier

import pytest

from ldmprobe import ProbeRecord, RecordStore
from ldmprobe.io.atomic import atomic_folder, atomic_write, remove_partials
from ldmprobe.tracking import report


def test_two_writers_of_one_path_do_not_meet(tmp_path):
    path = tmp_path / "page.html"
    with atomic_write(path) as outer:
        outer.write(b"outer")
        with atomic_write(path) as inner:
            inner.write(b"inner, and longer")
        assert path.read_bytes() == b"inner, and longer"
    assert path.read_bytes() == b"outer"
    assert list(tmp_path.iterdir()) == [path]


def test_two_reports_at_once_both_succeed(tmp_path, monkeypatch):
    RecordStore(tmp_path).append(ProbeRecord("objective", 1))
    both, html = Barrier(2, timeout=60), "x" * 20_000_000

    def drawn(*_):
        both.wait()
        return html

    monkeypatch.setattr(report, "report_html", drawn)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(report.write_report, [tmp_path] * 2))
    assert paths == [tmp_path / "report.html"] * 2
    assert paths[0].read_text() == html
    assert sorted(path.name for path in tmp_path.iterdir()) == ["probes", "report.html"]


def _killed_while_it_writes(path, scope):
    with scope(path):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("scope", "folders"), [(atomic_write, False), (atomic_folder, True)])
def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path, scope, folders):
    path, mine = tmp_path / "killed", tmp_path / ".mine.partial"
    for _ in range(2):
        process = get_context("fork").Process(target=_killed_while_it_writes, args=(path, scope))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    mine.mkdir()  # of another program
    with scope(tmp_path / "living") as living:
        with scope(tmp_path / "another") as _:
            remove_partials(tmp_path, folders=folders)
            left = [found.name for found in tmp_path.glob(".*.partial") if found != mine]
        assert sorted(name.split(".")[1] for name in left) == ["another", "living"]
        assert living
    assert sorted(found.name for found in tmp_path.iterdir()) == [".mine.partial", "another", "living"]
