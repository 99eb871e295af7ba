"""The direction of imports: each package has a rank, and none imports one below it."""

import ast
import re
from collections.abc import Callable, Iterable
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    ["errors", "types"],
    ["lightning_private"],
    ["io"],
    ["diffusion"],
    ["analysis"],
    ["models"],
    ["pretrained", "features", "data"],
    ["probing"],
    ["tracking", "training"],
    ["callbacks", "comparison"],
    ["configuration"],
    ["audit"],
    ["functional", "inference"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
PURE = ("diffusion", "analysis")
HEAVY = {"lightning", "wandb", "diffusers", "datasets"}

SOURCES = sorted((ROOT / "ldmprobe").rglob("*.py")) + sorted((ROOT / "callbacks").rglob("*.py"))
SOURCES = [path for path in SOURCES if "ldmprobe/callbacks" not in path.as_posix()]


@cache
def imports(path: Path) -> set[str]:
    """All that a file imports, also within its functions."""
    return _imported(ast.walk(ast.parse(path.read_text())))


@cache
def at_import(path: Path) -> set[str]:
    """All that it imports when it is itself imported."""
    return _imported(ast.parse(path.read_text()).body)


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if parts[0] == "callbacks" else parts[1].removesuffix(".py")


def test_imports_flow_one_way():
    for path in (path for path in SOURCES if package_of(path) != "__init__"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "ldmprobe" and len(parts) > 1 and parts[1] in RANK:
                place = path.relative_to(ROOT).as_posix()
                assert RANK[parts[1]] <= RANK[package_of(path)], f"{place} imports {name}"


def test_mathematics_knows_no_framework():
    for path in (path for path in SOURCES if package_of(path) in PURE):
        assert not {name.split(".")[0] for name in at_import(path)} & HEAVY, path
        if package_of(path) == "analysis":
            assert not {name.split(".")[0] for name in imports(path)} & HEAVY, path


def test_a_file_of_more_than_300_lines_says_why():
    for path in [*SOURCES, *sorted((ROOT / "scripts").glob("*.py"))]:
        text = path.read_text()
        reason = re.search(r"More than 300 lines[:,] \S", ast.get_docstring(ast.parse(text)) or "")
        assert (text.count("\n") > 300) == bool(reason), path


def test_only_one_file_imports_wandb():
    assert [path.name for path in SOURCES if any(name.split(".")[0] == "wandb" for name in imports(path))] == [
        "wandb.py"
    ]


def test_only_one_file_touches_what_lightning_keeps_private():
    private = re.compile(r"fit_loop|epoch_loop|_connector\b|_wandb_init|_val_check_time|_check_on_train|\btrainer\._")
    touched = [path.name for path in SOURCES if private.search(path.read_text())]
    assert touched == ["lightning_private.py"]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("ldmprobe", *parts) if parts[0] == "callbacks" else parts).removesuffix(".__init__")


@pytest.mark.parametrize("unit", [module_of, package_of])
def test_nothing_imports_in_a_circle(unit: Callable[[Path], str]):
    """Every import counts, also one within a function or for types only. A package is a folder or file directly in
    ldmprobe."""
    modules = {module_of(path): unit(path) for path in SOURCES}
    graph: dict[str, set[str]] = {name: set() for name in modules.values()}
    for path in SOURCES:
        graph[unit(path)] |= {modules[name] for name in imports(path) if name in modules} - {unit(path)}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names one


@pytest.mark.parametrize(("word", "at_most"), [(r"\bAny\b", 35), (r"\bgetattr\(", 15), (r"\bhasattr\(", 4)])
def test_types_are_lost_nowhere_new(word: str, at_most: int):
    """These numbers are to fall: a protocol, a dataclass or a name from `ldmprobe.types` says what a thing is."""
    assert sum(len(re.findall(word, path.read_text())) for path in SOURCES) <= at_most
