"""Code that a configuration brings along: named before any of it is imported, and refused where it can only do harm.

A ``class_path`` is an import, and an import runs code: whoever writes a configuration chooses what runs. So before jsonargparse sees a
file, it is read as plain YAML, and whatever it would import from outside ldmprobe and its libraries is named on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ldmprobe.errors import ConfigurationError

LIBRARIES = {
    "ldmprobe",
    "lightning",
    "pytorch_lightning",
    "torch",
    "torchmetrics",
    "diffusers",
    "transformers",
    "datasets",
}
"""Top-level packages whose classes are taken as known."""

DENIED = (
    "torch.hub", "torch.load", "torch.serialization", "torch.jit.load", "torch.package", "torch.utils.cpp_extension",
    "transformers.pipeline", "diffusers.pipelines", "numpy.load", "pandas.read_pickle", "joblib", "dill", "cloudpickle",
)  # fmt: skip
"""Import paths that no configuration needs and that unpickle, download or compile: refused, beside jsonargparse's own list (os, subprocess,
pickle, eval, …)."""

_OPENS_A_DOOR = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "use_safetensors": False}
_MAX_VALUES = 100_000  # of a configuration with its aliases written out; ours have some 200
_MAX_BYTES = 4_000_000


class ForeignCode(NamedTuple):
    """A value that makes a configuration run code that is not of ldmprobe and its libraries: its file, place and text."""

    file: str
    place: str
    value: str

    def __str__(self) -> str:
        text = f"{self.file} runs code from outside ldmprobe and its libraries: {self.value} ({self.place})"
        return "".join(character if character.isprintable() else "?" for character in text)


def announce_foreign_code(argv: Sequence[str]) -> None:
    """Name on stderr, once per machine, all foreign code in the configuration files on ``argv``, and deny :data:`DENIED`.

    Raises:
        ConfigurationError: a file is no YAML, or its aliases blow it up.
    """
    from jsonargparse import set_parsing_settings

    set_parsing_settings(import_path_denylist=list(DENIED))
    found = list(dict.fromkeys(foreign_code(argv)))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for code in found:
            print(f"ldmprobe: {code}", file=sys.stderr, flush=True)


def foreign_code(argv: Sequence[str]) -> Iterator[ForeignCode]:
    """All foreign code in the YAML files on a command line, and in those that they refer to; nothing is imported.

    Args:
        argv: of ``ldmprobe fit``: files are those of ``--config`` and ``-c``, and any other value that is a YAML file.

    Raises:
        ConfigurationError: a file of ``--config`` is no YAML, or one expands to more values than a configuration can have.
    """
    seen: set[Path] = set()
    named = False
    for argument in argv:
        option, equals, value = argument.partition("=") if argument.startswith("--") else (argument, "", argument)
        if argument.startswith("-c") and not argument.startswith("--") and len(argument) > 2:
            option, equals, value = "-c", "=", argument[2:].removeprefix("=")
        if option in ("--config", "-c") and not equals:
            named = True
            continue
        yield from _in_file(Path(value), named or option in ("--config", "-c"), seen)
        named = False


def _in_file(path: Path, must_be_yaml: bool, seen: set[Path]) -> Iterator[ForeignCode]:
    try:
        if (
            path.resolve() in seen
            or not path.is_file()
            or not (must_be_yaml or path.suffix in (".yaml", ".yml", ".json"))
        ):
            return
        seen.add(path.resolve())
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigurationError(
                f"{path} is larger than {_MAX_BYTES / 1e6:.0f} MB; expected a configuration in YAML."
            )
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, ConfigurationError) or must_be_yaml:
            raise ConfigurationError(f"{path} is not a configuration in YAML: {_one_line(error)}") from error
        return
    except OSError:  # a name too long, no permission: jsonargparse says so
        return
    _check_size(path, content)
    for place, key, value in _values(content, ""):
        if isinstance(value, str):
            if _is_foreign(key, value):
                yield ForeignCode(str(path), place.removesuffix(".class_path"), value)
            elif value.endswith((".yaml", ".yml", ".json")):
                for folder in (path.parent, Path()):
                    yield from _in_file(folder / value, False, seen)
        if (key in _OPENS_A_DOOR and value is _OPENS_A_DOOR[key]) or (key == "custom_pipeline" and value):
            yield ForeignCode(str(path), place, f"{key}: {str(value).lower()}")


def _values(content: Any, place: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every value with its place (``model.init_args.network``) and key. Text is given back, containers are walked."""
    if isinstance(content, dict):
        for name, value in content.items():
            name = str(name)
            yield from _values(value, f"{place}.{name}" if place else name, name.rsplit(".", 1)[-1])
    elif isinstance(content, (list, tuple, set)):
        for index, value in enumerate(content):
            yield from _values(value, f"{place}[{index}]", key)
    else:
        yield place, key, content


def _is_foreign(key: str, value: str) -> bool:
    """Whether jsonargparse may import ``value``: any dotted path as ``class_path``; elsewhere (a class may be given by its path alone)
    only if there is such a package."""
    top, dot, _ = value.partition(".")
    if not dot or not all(part.isidentifier() for part in value.split(".")) or top in LIBRARIES:
        return False
    return key == "class_path" or (top not in {*sys.stdlib_module_names, "test"} and _exists(top))


@cache
def _exists(package: str) -> bool:
    """Whether there is a package of this name; finding a top-level one does not import it."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _check_size(path: Path, content: Any) -> None:
    """Refuse what YAML's aliases blow up (a kilobyte can stand for billions of values) before anything walks through it."""
    sizes: dict[int, int] = {}

    def size(value: Any) -> int:
        if not isinstance(value, (dict, list, tuple, set)):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = _MAX_VALUES + 1  # of a container inside itself
            sizes[id(value)] = 1 + sum(size(item) for item in (value.values() if isinstance(value, dict) else value))
        return sizes[id(value)]

    if size(content) > _MAX_VALUES:
        raise ConfigurationError(
            f"{path} has more than {_MAX_VALUES:,} values once its aliases (`*name`) are written out; no configuration needs that."
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
