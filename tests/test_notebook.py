"""docs/notebook.ipynb: its cells run as they stand, again in the same notebook, and show little enough to be read."""

import ast
import json
from pathlib import Path

from ldmprobe import RecordStore

NOTEBOOK = json.loads((Path(__file__).resolve().parent.parent / "docs" / "notebook.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
MOST_CHARACTERS = 5_000  # of text that a cell shows


def shown(source: str, names: dict) -> object:
    """What a cell's last line comes to, which a notebook shows."""
    *lines, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([*lines, last], []), "cell", "exec"), names)  # noqa: S102 (it is ours)
        return None
    exec(compile(ast.Module(lines, []), "cell", "exec"), names)  # noqa: S102
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_notebook_runs_and_its_probing_cell_may_be_run_again(capsys):
    names: dict = {}
    results = [shown(source, names) for source in CELLS]
    (probing,) = [source for source in CELLS if "ldmprobe.probe(" in source]
    store = RecordStore("runs/notebook")
    assert [record.step for record in store.read("denoising")] == [0, 40]
    again = probing.replace("steps, every = 40", "steps, every = 0")
    assert again != probing
    assert shown(again, names) is None
    assert [record.step for record in store.read("denoising")] == [0]
    texts = [repr(result) for result in results if result is not None]
    assert max(map(len, texts)) < MOST_CHARACTERS
    assert len(capsys.readouterr().out) < MOST_CHARACTERS
    assert len(list(Path("runs/notebook/superseded").iterdir())) == 4
    run, verdict = names["run"], names["verdict"]
    assert verdict.state.value in run._repr_html_()
    assert verdict.step == 40
    assert verdict.change < 0
    assert verdict.news.startswith("step 40: bound ")
    frame = next(result for result in results if hasattr(result, "columns"))
    assert [*frame.columns] == [0, 40]
    assert (frame[40] > frame[0]).mean() > 0.8
    assert Path("runs/notebook/report.html").stat().st_size < 600_000
