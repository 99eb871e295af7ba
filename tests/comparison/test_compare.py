"""``ldmprobe compare``: what it writes, and where."""

import pandas as pd

from ldmprobe import write_comparison
from ldmprobe.cli import main
from ldmprobe.comparison.compare import PAGE, TABLE
from tests.comparison.runs import copied
from tests.helpers import refused, refuses


def test_the_same_run_twice_under_two_names_does_not_differ(runs_dir, tmp_path):
    copy = copied(runs_dir / "plain", tmp_path / "copy")
    page = write_comparison([runs_dir / "plain", copy], tmp_path / "out").read_text()
    assert "copy is the same over all levels" in page
    rows = pd.read_parquet(tmp_path / "out" / TABLE)
    assert (rows[rows.metric.str.startswith("gain")].value == 0).all()
    assert (rows[rows.metric == "steps_ratio"].value == 1).all()


def test_runs_without_a_denoising_probe_are_compared_by_their_samples(runs_dir, tmp_path):
    runs = [copied(runs_dir / name, tmp_path / name, without="denoising") for name in ("plain", "starved")]
    page = write_comparison(runs, tmp_path / "out").read_text()
    assert "there are no paired differences" in page
    assert "<h2>KL before and after each denoiser pass</h2>" in page
    assert "Who is better" not in page
    assert "could not be drawn" not in page.lower()


def test_an_out_that_holds_something_else_is_refused_and_an_earlier_comparison_replaced(runs_dir, tmp_path):
    directories = [runs_dir / "starved", runs_dir / "other_seed"]
    (tmp_path / "file").write_text("mine")
    with refused(r"file, which is a file; expected a directory"):
        write_comparison(directories, tmp_path / "file")
    with refused(r"The comparison cannot be written to .*file/out"):
        write_comparison(directories, tmp_path / "file" / "out")
    with refused(r"holds something else \(\w+\); choose a new directory"):
        write_comparison(directories, runs_dir / "starved")
    out = tmp_path / "out"
    first = write_comparison(directories, out).read_text()
    second = write_comparison(directories, out, ["a", "b"]).read_text()
    assert "<h1>a against b" in second
    assert "<h1>a against b" not in first
    assert sorted(path.name for path in out.iterdir()) == [PAGE, TABLE]
    (out / "notes.txt").write_text("mine")
    with refused(r"\(notes.txt\)"):
        write_comparison(directories, out)


def test_command_says_where_the_page_is(runs_dir, tmp_path, capsys):
    plain, starved = str(runs_dir / "plain"), str(runs_dir / "starved")
    assert main(["compare", plain, starved, "--out", str(tmp_path / "out"), "--labels", "A", "B"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / PAGE)
    assert "<h1>A against B" in (tmp_path / "out" / PAGE).read_text()
    refuses(capsys, ["compare", plain, "--out", str(tmp_path / "one")], "expected two or more")
