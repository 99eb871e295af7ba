"""What a configuration may have run: known classes, a user's own once they are named, and nothing else, in whatever
spelling."""

import copy
import inspect
import itertools
import json
import sys
from functools import cache
from pathlib import Path

import diffusers
import jsonargparse._util
import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import lightning.pytorch.plugins
import lightning.pytorch.strategies
import pytest
import torch
import yaml

from ldmprobe.configuration.cli import LDMProbeCLI
from tests.helpers import refused
from tests.run_config import component, unet

CONFIG = {
    "data": component("ldmprobe.ImageData", dataset="builtin:shapes"),
    "model": component("ldmprobe.LatentDiffusion", network=unet()),
    "trainer": {"logger": False, "accelerator": "cpu"},
}
RUNS = {
    "torch.distributed.run.main": {"args": ["--no-python", "touch", "went_off"]},
    "torch.utils.collect_env.run": {"command": "touch went_off"},
    "torch.fx.graph_module._exec_with_source": {"src": "open('went_off', 'w')", "globals": {}},
    "torch.storage._load_from_bytes": {"b": "went_off"},
    "torch.hub.load": {"repo_or_dir": ".", "model": "went_off", "source": "local"},
    "transformers.pipeline": {"task": "went_off"},
    "os.system": {"command": "touch went_off"},
    "torch.os.system": {"command": "touch went_off"},
    "subprocess.Popen": {"args": ["touch", "went_off"]},
    "torch.load": {"f": "went_off"},
    "pip.main": {"args": ["install", "went_off"]},
}
PLACES = [
    "model.init_args.scheduler", "model.init_args.network", "model.init_args.optimizer", "model.init_args.lr_scheduler", "model.init_args.codec",
    "trainer.strategy", "trainer.callbacks", "trainer.plugins", "trainer.profiler", "data", "model",
]  # fmt: skip
NAMES_FROM_A_LIST = ("trainer.strategy", "trainer.profiler")  # where they are text
numbers = itertools.count()


@cache
def _cli() -> LDMProbeCLI:
    Path("first.yaml").write_text(yaml.safe_dump(CONFIG))
    return LDMProbeCLI(["--config", "first.yaml"], run=False)


def read(config: object, *arguments: str) -> None:
    """All that is done with a configuration before anything in it is built."""
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    Path("config.yaml").write_text(text)
    cli = _cli()
    cli.parse_arguments(cli.parser, ["--config", "config.yaml", *arguments])


def with_value(place: str, value: object) -> dict:
    config = copy.deepcopy(CONFIG)
    *path, last = place.split(".")
    holder = config
    for step in path:
        holder = holder.setdefault(step, {})
    holder[last] = value
    return config


@pytest.fixture
def lab(tmp_path, monkeypatch) -> str:
    """A module that nobody has imported, and that says so when it is."""
    name = f"lab{next(numbers)}"
    Path(f"{name}.py").write_text(
        "import sys, torch\nprint('IMPORTED', file=sys.stderr)\n"
        "class Net(torch.nn.Identity):\n    def __init__(self, inner=None, dtype: torch.dtype = torch.float32): "
        "super().__init__()\ndef optimizer(params) -> torch.optim.Optimizer: return torch.optim.SGD(params)\n"
        "def anything(params): open('went_off', 'w')\n"
    )
    monkeypatch.syspath_prepend(Path.cwd())
    return name


@pytest.mark.parametrize(
    ("place", "as_string"),
    [(place, False) for place in PLACES] + [(place, True) for place in PLACES if place not in NAMES_FROM_A_LIST],
)
def test_library_functions_that_run_commands_are_refused(place, as_string):
    for path, arguments in RUNS.items():
        value = path if as_string else {"class_path": path, "init_args": arguments}
        with refused(r"A configuration may not name|expected the path of a class") as error:
            read(with_value(place, [value] if place.endswith(("callbacks", "plugins")) else value))
        assert path.rpartition(".")[2] in str(error.value)
    assert not Path("went_off").exists()


def test_no_class_is_built_among_the_arguments_of_a_dataset(capsys, lab):
    for path in (*RUNS, f"{lab}.Net"):
        spec = {"class_path": path, "init_args": RUNS.get(path, {})}
        read(with_value("data.init_args.dataset_kwargs", {"size": spec, "deep": [[spec]]}))
        settings = _cli().parser.instantiate(_cli().config).data.dataset_kwargs
        assert settings == {"size": spec, "deep": [[spec]]}
    assert not Path("went_off").exists()
    assert lab not in sys.modules


def test_nor_is_one_that_may_not_be_named_where_a_class_of_ones_own_takes_anything(lab):
    inner = {"class_path": "torch.distributed.run.main", "init_args": RUNS["torch.distributed.run.main"]}
    network = {"class_path": f"{lab}.Net", "init_args": {"inner": inner}}
    with refused(r"may not name torch\.distributed\.run\.main"):
        read(with_value("model.init_args.network", network))


@pytest.mark.parametrize(
    "spelling",
    [
        "nested", "text", "YAML in text", "JSON in text", "file.yaml", "file", "file in file", "argument", "argument=", "JSON argument", "+=",
    ],
)  # fmt: skip
def test_ones_own_code_is_named_before_it_is_imported(spelling, lab, capsys):
    path, config, arguments = f"{lab}.Net", copy.deepcopy(CONFIG), []
    spec: object = {"class_path": path, "init_args": {"dtype": "torch.bfloat16"}}
    place = "model.init_args.network"
    match spelling:
        case "nested":
            config = with_value(place, spec)
        case "text":
            config = with_value(place, path)
        case "YAML in text":
            config = with_value(place, yaml.safe_dump(spec))
        case "JSON in text":
            config = with_value(place, json.dumps(spec))
        case "file.yaml" | "file":
            Path(spelling).write_text(yaml.safe_dump(spec))
            config = with_value(place, spelling)
        case "file in file":
            Path("network").write_text(yaml.safe_dump(spec))
            Path("model").write_text(yaml.safe_dump({**CONFIG["model"], "init_args": {"network": "network"}}))
            config["model"] = "model"
        case "argument":
            arguments = ["--model.network", path]
        case "argument=":
            arguments = [f"--{place}={path}"]
        case "JSON argument":
            arguments = ["--model.network", json.dumps(spec)]
        case "+=":
            arguments = [f"--trainer.callbacks+={path}"]
    if spelling == "+=":
        with refused("does not correspond to a subclass of Callback"):
            read(config, *arguments)
    else:
        read(config, *arguments)
        assert _cli().config.model.init_args.network.class_path == path
    named, *_, imported = capsys.readouterr().err.splitlines()
    assert (named, imported) == (
        f"ldmprobe: the configuration names code from outside ldmprobe and its libraries: {path}",
        "IMPORTED",
    )


def test_it_is_named_once_per_machine(lab, capsys, monkeypatch):
    Path(f"{lab}_here.py").write_text(f"from {lab} import Net")
    for path in (f"{lab}_here.Net", f"{lab}.Net", f"{lab}_here.Net"):
        read(with_value("model.init_args.network", path))
    assert capsys.readouterr().err.count("the configuration names") == 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    read(with_value("model.init_args.optimizer", f"{lab}.optimizer"))
    assert capsys.readouterr().err == ""


def test_functions(lab):
    """One that says that it returns what is wanted may be named, and is called by its caller; none is called with a
    configuration's arguments."""
    read(with_value("model.init_args.optimizer", f"{lab}.optimizer"))
    for value in (f"{lab}.anything", {"class_path": f"{lab}.optimizer", "init_args": {"params": []}}):
        with refused(r"function that returns Optimizer|expected the path of a class"):
            read(with_value("model.init_args.optimizer", value))
    assert not Path("went_off").exists()


def test_were_nothing_named_nothing_would_be_imported(lab, monkeypatch):
    """jsonargparse itself denies what is not known, should a version of it not ask us."""
    read(CONFIG)
    policy = jsonargparse._util.check_import_path.__self__
    monkeypatch.setattr(jsonargparse._util, "check_import_path", policy._check)
    with refused(f"Importing '{lab}.Net' is not allowed"):
        read(with_value("model.init_args.network", f"{lab}.Net"))
    assert lab not in sys.modules


def test_what_libraries_have_to_offer_is_known(capsys):
    read(CONFIG)
    paths = [
        f"{module.__name__}.{name}"
        for module in (
            lightning.pytorch.callbacks, lightning.pytorch.loggers, lightning.pytorch.strategies, lightning.pytorch.plugins,
            torch.optim, torch.optim.lr_scheduler, torch.nn, diffusers.schedulers,
        )
        for name in dir(module)
        if inspect.isclass(getattr(module, name)) and getattr(module, name).__module__.startswith(module.__name__)
    ]  # fmt: skip
    assert len(paths) > 300
    for path in [
        *paths,
        "torch.bfloat16",
        "diffusers.UNet2DConditionModel",
        "diffusers.DiTTransformer2DModel",
        "transformers.CLIPTextModel",
    ]:
        jsonargparse._util.import_object(path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text",
    [
        *("a: [", "&", "\x00", "model: !!python/object/apply:os.system [touch went_off]"),
        *(pytest.param("[" * 3000 + "]" * 3000, id="deep"), pytest.param("x: " + "1" * 5000, id="long")),
    ],
)
def test_what_is_no_yaml_is_refused(text):
    with refused(r"The configuration cannot be read"):
        read(text)
    assert not Path("went_off").exists()


def test_what_blows_up_is_refused():
    bomb = "a0: &a0 [ha]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    for text, told in (
        (bomb, "values once its aliases"),
        ("a: &a [*a]", "values once its aliases"),
        ("# " * 2_000_001, "longer than"),
    ):
        with refused(told):
            read(text)
        with refused(told):
            read(CONFIG, f"--model.network={text}")


def test_settings_by_which_a_library_runs_code(lab, capsys):
    network = {
        "class_path": f"{lab}.Net",
        "dict_kwargs": {"trust_remote_code": True, "use_safetensors": True, "custom_pipeline": "\x1b[2J"},
    }
    read(with_value("model.init_args.network", network))
    said = capsys.readouterr().err
    assert "model.init_args.network.dict_kwargs.trust_remote_code: True" in said
    assert "custom_pipeline: ?[2J" in said
    assert "use_safetensors" not in said
