"""What is installed is what is here, and the command answers at once."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from ldmprobe.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
_STUDIES_BY_SCRIPT = {
    "cifar10",
    "cifar10_recipe",
    "digits",
    "digits_recipe",
    "first_stage_cifar10",
    "first_stage_shapes",
    "shapes_recipe",
}


def test_every_package_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "ldmprobe").rglob("__init__.py")}
    found = {".".join(folder.parts) for folder in folders}
    assert listed == found | {"ldmprobe.callbacks", "ldmprobe.presets"}


def _pinned(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def _requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [Requirement(text) for name in ("lora", "soap", "tensorboard") for text in extras[name]] + [
        Requirement(text) for text in project["dependencies"]
    ]


def test_the_lowest_versions_tested_are_the_lowest_allowed():
    lowest, usual = _pinned("constraints-lowest.txt"), _pinned("constraints.txt")
    requirements = _requirements()
    assert {requirement.name for requirement in requirements} == lowest.keys()
    for requirement in requirements:
        (minimum,) = (each.version for each in requirement.specifier if each.operator == ">=")
        assert requirement.specifier.contains(lowest[requirement.name])
        assert requirement.name == "torch" or lowest[requirement.name].startswith(minimum)
        assert requirement.specifier.contains(usual.get(requirement.name, minimum))


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_malicious_releases_are_not_allowed(name):
    """2.6.2 and 2.6.3 stole credentials when they were imported (GHSA-w37p-236h-pfx3)."""
    (requirement,) = (each for each in _requirements() if each.name == name)
    assert {"!=2.6.2", "!=2.6.3"} <= {str(each) for each in requirement.specifier}
    assert not any(map(requirement.specifier.contains, ("2.5.6", "2.6.2", "2.6.3", "2.6.5")))


def test_callbacks_are_one_module_whether_or_not_the_link_is_there():
    import ldmprobe.callbacks

    assert (ROOT / "ldmprobe" / "callbacks").is_symlink()
    assert Path(ldmprobe.callbacks.__file__).resolve() == ROOT / "callbacks" / "__init__.py"


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from ldmprobe.cli import COMMANDS, main\n"
        "for argv in (['--help'], ['--version'], *([command, '--help'] for command in COMMANDS)):\n"
        "    try: main(argv)\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "    heavy = {'torch', 'lightning', 'diffusers', 'datasets', 'wandb', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, (argv, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ldmprobe") == len(COMMANDS) + 1


def test_a_shell_completes_commands_options_choices_and_files(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "mine.yaml").touch()
    typed = {
        "verd": "verdict",
        "fit --trainer.max_st": "--trainer.max_steps",
        "sample --sampler he": "heun",
        "probe runs/digits --num-dr": "--num-draws",
        "fit --config mine": "mine.yaml",
    }
    code = 'source ./script; for line in "$@"; do COMP_WORDS=(ldmprobe $line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); '
    code += '_shtab_ldmprobe ldmprobe "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"; echo "${COMPREPLY[*]}"; done'
    done = subprocess.run(["bash", "-c", code, "", *typed], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*typed.values()]


def test_a_configuration_to_begin_with_comes_with_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    there = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").rglob("*.yaml")}
    assert listed[0] == "balancer"
    assert there - {*listed} == {f"studies/{name}" for name in _STUDIES_BY_SCRIPT}
    assert main(["init", "digits"]) == 0
    assert capsys.readouterr().out == "ldmprobe fit --config digits.yaml\n"
    written, there = (yaml.safe_load(path.read_text()) for path in (Path("digits.yaml"), ROOT / "configs/digits.yaml"))
    assert written == there
    # One of a folder comes with what it is to be given with, which is left as it is where it is there already.
    assert main(["init", "families/edm"]) == 0
    assert capsys.readouterr().out == "ldmprobe fit --config families/base.yaml --config families/edm.yaml\n"
    Path("families/base.yaml").write_text("{}")
    assert main(["init", "families/flow", "--out", "flow.yaml"]) == 0
    assert capsys.readouterr().out == "ldmprobe fit --config families/base.yaml --config flow.yaml\n"
    assert Path("families/base.yaml").read_text() == "{}"
    edm, flow = (yaml.safe_load(Path(name).read_text()) for name in ("families/edm.yaml", "flow.yaml"))
    assert edm == yaml.safe_load((ROOT / "configs/families/edm.yaml").read_text()) != flow
    assert main(["init", "digits"]) == 2
    assert main(["init", "digts"]) == 2
    assert main(["verdct"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert "digits.yaml exists" in told[0]
    assert "Did you mean digits?" in told[1]
    assert "Did you mean verdict?" in told[2]
