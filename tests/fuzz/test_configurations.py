"""Spoilt configurations: they are built all the same, or refused in a sentence."""

import contextlib
import copy
import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from ldmprobe.configuration.cli import LDMProbeCLI
from ldmprobe.errors import ConfigurationError
from tests.fuzz.cases import damaged, fuzz, json_values

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHIPPED = {name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("digits", "gaussian", "images")}
DESPAIR = [
    None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**30, "", "text", "0", [], {}, [[]], {"class_path": None}, [None],
]  # fmt: skip
CLASS_PATHS = [
    "torch.nn.Linear", "torch.nn.Identity", "diffusers.NoSuchThing", "no.such.Module", "os.system", "torch.optim.SGD", "ldmprobe", "..", "",
    "ldmprobe.callbacks.DDIMProbe", "lightning.pytorch.callbacks.ModelCheckpoint", "diffusers.UNet2DModel", "torch", "builtins.dict", "DDIMProbe",
]  # fmt: skip
_MAX_SIZE = 64  # larger networks are valid, and slow


def places(content: Any, place: tuple = ()) -> list[tuple]:
    """The place of every value."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place, *(found for key, value in items for found in places(value, (*place, key)))]


@st.composite
def held(draw: Any, content: Any, otherwise: str) -> tuple[Any, Any]:
    """A dictionary or list within ``content``, and a key of it; ``otherwise`` where there is none."""
    *path, key = draw(st.sampled_from(places(content)[1:] or [(otherwise,)]))
    for step in path:
        content = content[step]
    return content, key


@st.composite
def spoilt(draw: Any) -> Any:
    """A shipped configuration with one to three values replaced, removed, misspelt, moved or put in."""
    config = copy.deepcopy(SHIPPED[draw(st.sampled_from([*SHIPPED]))])
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(held(config, "run_dir"))
        match draw(st.sampled_from(["replace", "replace", "remove", "misspell", "class", "add"])):
            case "replace":
                holder[key] = draw(st.sampled_from(DESPAIR) | st.integers(-3, _MAX_SIZE) | json_values)
            case "remove":
                del holder[key]
            case "misspell" if isinstance(holder, dict):
                others = [f"{key}s", str(key)[1:], f"{key}+", f"{key}.x", "class_path", "init_args"]
                holder[draw(st.sampled_from(others))] = holder.pop(key)
            case "class" if isinstance(holder[key], (dict, str)):
                chosen = draw(st.sampled_from(CLASS_PATHS))
                holder[key] = chosen if isinstance(holder[key], str) else {**holder[key], "class_path": chosen}
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=5))] = draw(json_values)
    return config


@cache
def _cli() -> LDMProbeCLI:
    return LDMProbeCLI(["--config", str(CONFIGS / "gaussian.yaml")], run=False)


def is_built_or_refused(path: Path) -> None:
    """As ``ldmprobe fit`` does up to training, with a parser that is made once."""
    cli, printed = _cli(), io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            cli.parse_arguments(cli.parser, ["--config", str(path)])
            cli.before_instantiate_classes()
            cli.instantiate_classes()
        except ConfigurationError as error:
            said = str(error)
        except SystemExit as stopped:
            said = printed.getvalue() if stopped.code == 2 else ""
        else:
            return
    assert len(said) > 20
    assert "Traceback" not in said


@fuzz(10, 400, spoilt())
def test_spoilt_values(folder: Path, config: Any) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    is_built_or_refused(path)


@pytest.mark.parametrize("part", ["data", "model", "trainer", "run_dir"])
def test_a_part_without_content(part, tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**SHIPPED["gaussian"], part: None}))
    is_built_or_refused(path)


@fuzz(10, 400, damaged((CONFIGS / "gaussian.yaml").read_bytes()) | st.binary(max_size=60))
def test_damaged_yaml(folder: Path, content: bytes) -> None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    is_built_or_refused(path)
