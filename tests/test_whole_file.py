"""Files that are there whole or not at all, whoever else writes them."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from ldmprobe.probing.record import ProbeRecord
from ldmprobe.tracking import report
from ldmprobe.tracking.store import RecordStore
from ldmprobe.whole_file import whole_file


def test_two_writers_of_one_path_do_not_meet(tmp_path):
    path = tmp_path / "page.html"
    with whole_file(path) as outer:
        outer.write(b"outer")
        with whole_file(path) as inner:
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
