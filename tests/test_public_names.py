"""Public names are flat: ``ldmprobe.X``, or ``X`` alone in a YAML; nothing that a user reads names a deeper path."""

import ast
import re
from pathlib import Path

import pytest
import yaml

import ldmprobe
import ldmprobe.callbacks
from ldmprobe.configuration.cli import build_cli
from tests.pipelines import saved

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = {f"ldmprobe.{name}" for name in ldmprobe.__all__}
PUBLIC |= {
    "ldmprobe.X",
    "ldmprobe.callbacks",
    "ldmprobe.callbacks.X",
    *(f"ldmprobe.callbacks.{name}" for name in ldmprobe.callbacks.__all__),
}
PATH = re.compile(r"\bldmprobe(?:\.\w+)+")
CONFIGS = sorted(ROOT.glob("configs/*.yaml"))
TEXTS = [*CONFIGS, *ROOT.glob("configs/studies/*.yaml"), *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
CODE = [path for folder in ("ldmprobe", "callbacks", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]


def messages(path: Path) -> list[str]:
    """The strings in a module, docstrings left out."""
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in strings if id(node) not in docs]


@pytest.mark.parametrize("name", ldmprobe.__all__)
def test_every_public_name_can_be_imported(name):
    value = getattr(ldmprobe, name)
    assert name == "__version__" or value.__name__ == name


def test_configurations_and_documents_name_no_deep_path():
    code_in = re.compile(r"^ *(?:from|import) .*$|-m ldmprobe\.\w+", re.MULTILINE)
    deep = {
        path.name: found for path in TEXTS if (found := set(PATH.findall(code_in.sub("", path.read_text()))) - PUBLIC)
    }
    assert deep == {}


def test_messages_name_no_deep_path():
    packages = {folder.name for folder in (ROOT / "ldmprobe").iterdir() if folder.is_dir()} - {"callbacks"}
    deep = {
        path.name: found
        for path in CODE
        for text in messages(path)
        if (found := {name for name in PATH.findall(text) if name.split(".")[1] in packages and name.count(".") > 1})
    }
    assert deep == {}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_bare_names_are_enough_in_a_configuration_and_it_is_saved_with_flat_ones(tmp_path, path):
    given = path.read_text()
    bare = tmp_path / "bare.yaml"
    bare.write_text(re.sub(r"ldmprobe\.(?:callbacks\.)?", "", given))
    assert "ldmprobe." not in bare.read_text().replace("ldmprobe fit", "")
    settings = yaml.safe_load(given)
    under = "gaussian" if "lora" not in path.stem else "shapes_finetune"
    arguments = [] if "data" in settings else [f"--config={ROOT / 'configs' / under}.yaml", "--trainer.callbacks=[]"]
    arguments.append(f"--config={bare}")
    if "finetune" in path.stem or "lora" in path.stem:
        arguments.append(f"--model.init_args.pretrained={saved('StableDiffusionPipeline')}")
    saved_as = build_cli([*arguments, f"--run_dir={tmp_path / 'run'}"], run=False)
    named, saved_names = (
        set(re.findall(r"^[^#\n]*class_path: (ldmprobe[\w.]+)", text, re.MULTILINE))
        for text in (given, saved_as.parser.dump(saved_as.config))
    )
    assert named <= saved_names <= PUBLIC
