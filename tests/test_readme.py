"""What the README says is so: its files exist, its commands are understood, its example runs."""

import re
import runpy
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch

import ldmprobe
from ldmprobe.cli import COMMANDS, main
from tests.helpers import sd_scheduler, tiny_unet

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
TEXT = "\n".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))


def commands(text: str) -> list[str]:
    """The lines of its code blocks that call ldmprobe."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for language, block in blocks if not language for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("ldmprobe ")})


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_scripts_configs_and_pictures_that_are_named_exist():
    named = re.findall(r"(?:scripts|configs)/[\w/]+\.(?:py|yaml)", TEXT) + re.findall(r"docs/\w+\.png", README)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_it_names_every_command():
    assert {command.split()[1] for command in commands(README)} == COMMANDS.keys() - {"validate", "test"}


@pytest.mark.parametrize("command", commands(TEXT))
def test_commands_are_understood(command, capsys):
    _, subcommand, *arguments = shlex.split(command)
    with pytest.raises(SystemExit) as stop:
        main([subcommand, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in (part for part in arguments if part.startswith("--") and "." not in part):
        assert flag in shown


def test_its_ten_lines_of_python_run(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.setattr(
        ldmprobe, "probe", partial(ldmprobe.probe, num_samples=8, num_steps=3, num_draws=32), raising=False
    )
    images = torch.rand(64, 1, 8, 8) * 2 - 1
    given = {
        "unet": tiny_unet(channels=1),
        "noise_scheduler": sd_scheduler(),
        "loader": list(images.split(16)),
        "held_out_images": images[:32],
        "train_on": lambda batch: None,
    }
    Path("loop.py").write_text(code.replace("(4, 32, 32)", "(1, 8, 8)"))
    runpy.run_path("loop.py", given)
    assert [record.step for record in ldmprobe.RecordStore("runs/mine").read("ddim")] == [0]
    assert Path("runs/mine/report.html").is_file()
