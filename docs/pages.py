"""Pages of the site that are written from the source: the API reference, from the public names, and the tree, from
docstrings.

mkdocs.yml names this file as a hook; it needs nothing of ldmprobe installed.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
_IMPORT = re.compile(r"^from ldmprobe\.(\w+)\S* import (\w+)", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of docs/."""
    from mkdocs.structure.files import File

    for name, text in (("API.md", api()), ("TREE.md", tree())):
        files.append(File.generated(config, name, content=text))
    return files


def public_names() -> dict[str, list[str]]:
    """Return the public names by the package that defines them, as the stub ``ldmprobe/__init__.pyi`` and the callbacks
    list them.
    """
    names = defaultdict(list)
    for package, name in _IMPORT.findall((ROOT / "ldmprobe" / "__init__.pyi").read_text()):
        names[package].append(f"ldmprobe.{name}")
    (exported,) = (
        node.value
        for node in ast.parse((ROOT / "callbacks" / "__init__.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    names["callbacks"] = [f"ldmprobe.callbacks.{name}" for name in ast.literal_eval(exported)]
    return names


def api() -> str:
    """Return the API reference as Markdown: a section for each package, an entry for each public name."""
    lines = [
        "# API reference",
        "",
        "Every name below is imported from `ldmprobe`; in a YAML, the bare name of a class is enough.",
    ]
    for package, names in sorted(public_names().items()):
        lines += ["", f"## {package.capitalize()}", "", f"{_purpose(ROOT / 'ldmprobe' / package)}"]
        lines += [f"\n::: {name}" for name in names]
    return "\n".join(lines) + "\n"


def tree() -> str:
    """Return the source tree as Markdown: each file with its purpose, the first sentence of its docstring."""
    lines = ["# The source tree", ""]
    for folder in sorted({path.parent for path in modules()}):
        lines += ["", f"## {folder.relative_to(ROOT)}/", "", _purpose(folder), "", "| file | purpose |", "|---|---|"]
        files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        lines += [f"| `{path.name}` | {_purpose(path)} |" for path in files]
    return "\n".join(lines) + "\n"


def modules() -> list[Path]:
    """Return all Python files of the library, and the scripts."""
    folders = (ROOT / "ldmprobe", ROOT / "callbacks", ROOT / "scripts")
    found = [path for folder in folders for path in folder.rglob("*.py")]
    return [path for path in found if path.parent != ROOT / "ldmprobe" / "callbacks"]


def _purpose(path: Path) -> str:
    """Return the first paragraph of a module's or package's docstring."""
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = (file.exists() and ast.get_docstring(ast.parse(file.read_text()))) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")
