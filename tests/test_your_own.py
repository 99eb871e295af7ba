"""docs/YOUR_OWN.md: its programs run as they stand, leave records and a report, and train bit-identically without their
probes."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ldmprobe
from ldmprobe.io.store import RecordStore

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "YOUR_OWN.md").read_text()
MINE, *BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PROGRAMS = dict(zip(("module", "loop", "script"), BLOCKS, strict=True))


@pytest.fixture(autouse=True)
def _mine(tmp_path, monkeypatch):
    """``mine.py`` beside the program."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def _run(name: str) -> tuple[dict[str, Any], torch.Tensor]:
    """The program's variables, and the random state that it ends with."""
    Path(f"{name}.py").write_text(PROGRAMS[name])
    torch.manual_seed(0)
    return runpy.run_path(f"{name}.py", run_name="__main__"), torch.get_rng_state()


def _holds_a_run(name: str, steps: list[int]) -> None:
    store = RecordStore(f"runs/{name}")
    ddim, denoising = store.read("ddim"), store.read("denoising")
    assert [record.step for record in ddim] == [record.step for record in denoising] == steps
    assert "step_kl_ideal" in ddim[-1].curves
    assert "denoising_progress" in denoising[-1].curves
    assert denoising[0].scalars["denoising_bound_nats"] > denoising[-1].scalars["denoising_bound_nats"]
    assert "</html>" in Path(f"runs/{name}/report.html").read_text()


def test_a_module_of_ones_own_in_under_thirty_lines():
    assert len(PROGRAMS["module"].splitlines()) < 30
    _run("module")
    _holds_a_run("module", [0, 40])


@pytest.mark.parametrize(
    ("name", "steps"), [pytest.param("loop", [0, 40], marks=pytest.mark.reliability), ("script", [0, 20])]
)
def test_a_loop_of_ones_own_trains_as_without_the_probe(name, steps, monkeypatch):
    probed, random_state = _run(name)
    _holds_a_run(name, steps)
    assert "one_step_excess" in RecordStore(f"runs/{name}").read("ddim")[-1].curves
    left_out = []
    monkeypatch.setattr(ldmprobe, "probe", lambda model, run_dir, step, *_, **__: left_out.append(step))
    monkeypatch.setattr(ldmprobe, "write_report", lambda run_dir: None)
    plain, expected_state = _run(name)
    assert left_out == steps
    assert torch.equal(random_state, expected_state)
    for part in ("unet", "optimizer"):
        torch.testing.assert_close(probed[part].state_dict(), plain[part].state_dict(), rtol=0, atol=0)
    assert [m.training for m in probed["unet"].modules()] == [m.training for m in plain["unet"].modules()]
