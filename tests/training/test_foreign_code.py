"""foreign_code: what a configuration would import, found without importing anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ldmprobe.errors import ConfigurationError
from ldmprobe.training.foreign_code import ForeignCode, announce_foreign_code, foreign_code

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(autouse=True)
def _lab(tmp_path, monkeypatch):
    """A package that would show if it were imported."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)


def found(text: str, *argv: str) -> list[str]:
    Path("config.yaml").write_text(text)
    return [f"{code.value} ({code.place})" for code in foreign_code(argv or ("fit", "--config", "config.yaml"))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {class_path: lab.Net}", "lab.Net (model)"),
        ("model: {class_path: not_installed.Net}", "not_installed.Net (model)"),
        ("model: {class_path: os.system}", "os.system (model)"),
        ("model: lab.nets.Net", "lab.nets.Net (model)"),
        ("model.class_path: lab.Net", "lab.Net (model)"),
        ("fit: {trainer: {callbacks+: [{class_path: DDIMProbe}, lab.Callback]}}", "lab.Callback (fit.trainer.callbacks+[1])"),
        ("a: &a {class_path: lab.Net}\nb: *a", "lab.Net (a) lab.Net (b)"),
        ("data: {init_args: {dataset_kwargs: {deep: [[{class_path: lab.Net}]]}}}", "lab.Net (data.init_args.dataset_kwargs.deep[0][0])"),
        ("network: {init_args: {trust_remote_code: true}}", "trust_remote_code: true (network.init_args.trust_remote_code)"),
        ("weights_only: false", "weights_only: false (weights_only)"),
    ],
)  # fmt: skip
def test_foreign_code_is_found(text, expected):
    assert " ".join(found(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "class_path: torch.optim.AdamW",
        "class_path: DDIMProbe",
        "run_dir: runs/lab.1",
        "dataset: test.parquet",
        "url: https://lab.org/Net",
    ],
)
def test_what_is_known_or_no_import_is_not_named(text):
    assert found(text) == []


@pytest.mark.parametrize("name", ["digits", "gaussian", "images", "probes"])
def test_our_own_configurations_bring_none(name):
    assert list(foreign_code(["fit", "--config", str(CONFIGS / f"{name}.yaml")])) == []


@pytest.mark.parametrize(
    "argv",
    [("fit", "-c", "config.yaml"), ("fit", "--config=config.yaml"), ("--config", "config.yaml", "fit"), ("fit", "-cconfig.yaml"),
     ("fit", "--model", "config.yaml"), ("fit", "--data=config.yaml"), ("fit", "--trainer.callbacks+=config.yaml")],
)  # fmt: skip
def test_every_way_to_give_a_file(argv):
    assert found("class_path: lab.Net", *argv) == ["lab.Net (class_path)"]


def test_a_file_that_a_file_refers_to():
    Path("parts").mkdir()
    Path("parts/net.yaml").write_text("class_path: lab.Net\nagain: ../config.yaml")
    (code,) = [*foreign_code(["fit", "--config", _written("model: parts/net.yaml")])]
    assert code.file.endswith("parts/net.yaml")


def _written(text: str) -> str:
    Path("config.yaml").write_text(text)
    return "config.yaml"


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.system [touch went_off]", "\x00"])
def test_what_is_no_yaml_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"config.yaml is not a configuration in YAML"):
        found(text)
    assert not Path("went_off").exists()


def test_aliases_that_blow_up_are_refused():
    text = "a0: &a0 [ha]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    for bomb in (text, "a: &a [*a]"):
        with pytest.raises(ConfigurationError, match="values once its aliases"):
            found(bomb)


def test_the_line_is_one_line_of_plain_text():
    line = str(ForeignCode("c\x1b[2J.yaml", "a\nb", "lab.Net"))
    assert line == "c?[2J.yaml runs code from outside ldmprobe and its libraries: lab.Net (a?b)"


def test_named_once_per_machine(capsys, monkeypatch):
    path = _written("model: {class_path: lab.Net}")
    announce_foreign_code(["fit", "--config", path, "--config", path])
    assert capsys.readouterr().err.count("lab.Net (model)") == 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    announce_foreign_code(["fit", "--config", path])
    assert capsys.readouterr().err == ""


def test_nothing_is_imported_to_find_it(tmp_path):
    code = "import sys\nfrom ldmprobe.training.foreign_code import foreign_code\nassert list(foreign_code(sys.argv))\nassert 'lab' not in sys.modules"
    path = _written("model: {class_path: lab.Net}\nnetwork: lab.Other")
    subprocess.run([sys.executable, "-c", code, "--config", path], check=True, timeout=120)
