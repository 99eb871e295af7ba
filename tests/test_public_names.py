"""Public names are flat: ``ldmprobe.X``, or ``X`` alone in a YAML; nothing that a user reads names a deeper path."""

import ast
import re
from pathlib import Path

import ldmprobe
import ldmprobe.callbacks

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = {f"ldmprobe.{name}" for name in ldmprobe.__all__}
PUBLIC |= {
    "ldmprobe.X",
    "ldmprobe.callbacks",
    "ldmprobe.callbacks.X",
    *(f"ldmprobe.callbacks.{name}" for name in ldmprobe.callbacks.__all__),
}
PATH = re.compile(r"\bldmprobe(?:\.\w+)+")
TEXTS = [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
CODE = [path for folder in ("ldmprobe", "callbacks", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]


def messages(path: Path) -> list[str]:
    """The strings in a module, docstrings left out."""
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in strings if id(node) not in docs]


def test_every_public_name_can_be_imported():
    assert ldmprobe.__version__
    named = [name for name in ldmprobe.__all__ if name != "__version__"]
    assert [getattr(ldmprobe, name).__name__ for name in named] == named


def test_configurations_and_documents_name_no_deep_path():
    code_in = re.compile(r"^ *(?:from|import) .*$|-m ldmprobe\.\w+", re.MULTILINE)
    made_by = re.compile(rf"({'|'.join(map(re.escape, PUBLIC))})\.[a-z]\w*")  # a class's own way of being made
    deep = {
        path.name: found
        for path in TEXTS
        if (
            found := {
                name
                for name in set(PATH.findall(code_in.sub("", path.read_text()))) - PUBLIC
                if not (name.count(".") == 2 and made_by.fullmatch(name))
            }
        )
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
