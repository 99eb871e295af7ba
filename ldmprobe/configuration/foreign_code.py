"""The code that a configuration may run: known classes of ldmprobe and its libraries; a user's own, which are named
first; nothing else.

A ``class_path`` is an import, and an import runs code: whoever writes a configuration chooses what runs. However a path
is spelled (in a file, a file that it refers to, a string with YAML in it, an argument), jsonargparse asks its policy
before it imports it. Here the policy is to deny all but ``LIBRARIES``; what is of no library is named on stderr, and
only then allowed.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import jsonargparse._util
import torch
import yaml
from jsonargparse import Namespace, get_loader, set_loader, set_parsing_settings

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.plain_text import plain

_OF_LIGHTNING = ("accelerators", "callbacks", "core", "demos", "loggers", "plugins", "profilers", "strategies")
LIBRARIES: dict[str, tuple[str, ...]] = {
    "ldmprobe": (),
    "torchmetrics": (),
    "diffusers": (),
    "transformers": (),
    "torch": (
        "nn",
        "optim",
        "distributed.fsdp",
        "distributed.algorithms.ddp_comm_hooks",
        "device",
        "dtype",
        *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
    ),
    "lightning": (
        "LightningModule",
        "LightningDataModule",
        *(f"{package}.{part}" for package in ("pytorch", "fabric") for part in _OF_LIGHTNING),
        "pytorch.LightningModule",
        "pytorch.LightningDataModule",
    ),
    "pytorch_lightning": ("LightningModule", "LightningDataModule", *_OF_LIGHTNING),
    "lightning_fabric": _OF_LIGHTNING,
    "bitsandbytes": ("optim",),
    "pytorch_optimizer": ("SOAP", "optimizer.soap"),
}
"""What a configuration may name without a word, by package: these parts of it; where there are none, all of it."""

_CLASSES_OF = {"diffusers": {"models", "schedulers", "optimization"}, "transformers": {"models", "optimization"}}
"""The modules that the allowed classes are defined in, by package, where all of its classes stand at the top."""

_NEVER = {*sys.stdlib_module_names, *LIBRARIES, "datasets", "jsonargparse", "pip", "pkg_resources", "setuptools"}
"""Packages of which nothing is allowed that is not in ``LIBRARIES``."""

_OPENS_A_DOOR = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "use_safetensors": False}
_MAX_VALUES = 100_000  # of a configuration with its aliases written out; ours have some 200
_MAX_CHARACTERS = 4_000_000


class _Policy:
    """The names that jsonargparse asked for in this process, and those that were refused."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.refused: list[str] = []
        denied = [
            f"{package}.{module.name}"
            for package, allowed in _CLASSES_OF.items()
            if (spec := find_spec(package)) is not None
            for module in pkgutil.iter_modules(spec.submodule_search_locations)
            if module.name not in allowed
        ]
        allowed = [package for package, parts in LIBRARIES.items() if not parts]
        allowed += [f"{package}.{part}" for package, parts in LIBRARIES.items() for part in parts]
        set_parsing_settings(import_path_denylist=["*", *denied], import_path_allowlist=allowed)
        self._check, jsonargparse._util.check_import_path = jsonargparse._util.check_import_path, self.check
        self._load = get_loader("yaml")
        set_loader("yaml", self.load, exceptions=(yaml.YAMLError,))

    def check(self, path: str) -> None:
        """Name ``path``, which is about to be imported, if it is a user's own; raise an ImportError if it may not
        be.
        """
        top = path.partition(".")[0]
        try:
            self._check(path)
        except ImportError:
            if top in _NEVER:
                self.refused.append(path)
                raise
            # Under the name that it was given, if this is the one it has where it is defined.
            found = imported(path)
            if found is None or not any(found is imported(other) for other in self.named):
                self.named.append(path)
                _say(f"the configuration names code from outside ldmprobe and its libraries: {path}")
            set_parsing_settings(import_path_allowlist=[path])

    def load(self, text: str) -> object:
        """YAML, unless it is too large."""
        if len(text) > _MAX_CHARACTERS:
            raise ConfigurationError(
                f"A part of the configuration is longer than {_MAX_CHARACTERS:,} characters; expected YAML."
            )
        content: object = self._load(text)
        if _size(content, {}) > _MAX_VALUES:
            raise ConfigurationError(
                f"The configuration has more than {_MAX_VALUES:,} values once its aliases (`*name`) are written out; "
                "no configuration needs that."
            )
        return content


@cache
def _policy() -> _Policy:
    return _Policy()


@contextmanager
def imports_in_the_open() -> Iterator[None]:
    """Around reading a configuration: code of a user's own is named on stderr, once per machine, before it is imported.

    The policy stays in force for the rest of the process, in which the classes are built.

    Raises:
        ConfigurationError: the configuration cannot be read, and names what it may not.
    """
    refused = _policy().refused
    refused.clear()
    try:
        yield
    except Exception as error:
        if refused:
            raise ConfigurationError(_refusal(refused[0])) from error
        raise


def check_classes(config: object, place: str = "") -> None:
    """Go through a configuration that was read, before anything in it is built: every ``class_path`` must be that of a
    class, and settings by which a library runs code that it loads are named on stderr.

    Raises:
        ConfigurationError: a function in the place of a class, or a class that may not be named.
    """
    if isinstance(config, (list, tuple)):
        for index, value in enumerate(config):
            check_classes(value, f"{place}[{index}]")
    elif isinstance(config, (dict, Namespace)):
        path = config.get("class_path")
        if path in _policy().refused:
            raise ConfigurationError(_refusal(str(path)))
        if isinstance(config, Namespace) and isinstance(path, str) and not inspect.isclass(pkgutil.resolve_name(path)):
            raise ConfigurationError(
                f"{place} cannot be read: {path} is no class, and would be called with what the configuration says; "
                "expected the path of a class."
            )
        for name, value in (vars(config) if isinstance(config, Namespace) else config).items():
            if (name in _OPENS_A_DOOR and value is _OPENS_A_DOOR[name]) or (name == "custom_pipeline" and value):
                _say(f"the configuration has a library run code that it loads: {place}.{name}: {value}")
            check_classes(value, f"{place}.{name}" if place else str(name))


def _refusal(path: str) -> str:
    return (
        f"A configuration may not name {path}. Expected a class of ldmprobe, torch.nn, torch.optim, lightning, "
        "diffusers or the like, or one of your own; what else you need, write a class of your own around it."
    )


def _size(value: object, known: dict[int, int]) -> int:
    """Return how many values YAML's aliases make, without writing them out: a kilobyte can stand for billions."""
    if not isinstance(value, (dict, list, tuple, set)):
        return 1
    if id(value) not in known:
        known[id(value)] = _MAX_VALUES + 1  # of a container inside itself
        known[id(value)] = 1 + sum(
            _size(item, known) for item in (value.values() if isinstance(value, dict) else value)
        )
    return known[id(value)]


def imported(path: str) -> object:
    """Return what is at ``path``, if its module has been imported; None otherwise."""
    module, _, name = path.rpartition(".")
    return vars(sys.modules[module]).get(name) if module in sys.modules else None


def _say(message: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"ldmprobe: {plain(message)}".replace("\n", "?"), file=sys.stderr, flush=True)
