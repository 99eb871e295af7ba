"""The core does without the packages of extras, and without wandb; what needs one says which extra brings it."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ldmprobe.configuration.errors import configuration_errors
from ldmprobe.errors import EXTRAS
from ldmprobe.features.imagenet import ImageNetClassifier
from ldmprobe.features.inception import Inception
from ldmprobe.models.conditioning import SmallCLIP
from ldmprobe.models.conditioning.text_description import encoder_from
from ldmprobe.pretrained.lora import LoRA
from tests.helpers import refused, refuses

ROOT = Path(__file__).resolve().parent.parent


def test_extras_are_those_of_the_project():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = {
        re.sub("[-.]", "_", Requirement(text).name): name
        for name in extras.keys() - {"dev", "docs", "lora"}
        for text in extras[name]
    }
    assert EXTRAS.items() <= {**brought, "peft": "lora"}.items()
    assert {*EXTRAS.values()} == extras.keys() - {"dev", "docs"}
    assert {*extras["text"]} <= {*extras["lora"]}  # of one lowest version


def test_commands_that_need_one_name_the_extra(alone, tmp_path, capsys):
    for command in (["completion", "bash"], ["workspace", str(tmp_path)]):
        refuses(capsys, command, f"ldmprobe[{command[0]}]")


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U 'wandb>=0.12.10'`", "`pip install wandb`"),
        ("Neither `tensorboard` nor `tensorboardX` is available. Try `pip install`ing either.", r"ldmprobe\[tensorboard\]"),
    ],
)  # fmt: skip
def test_what_lightning_says_of_a_missing_logger_names_what_to_install(alone, said, advice):
    with refused(advice), configuration_errors("built"):
        raise ModuleNotFoundError(said)


def test_what_needs_one_names_the_extra(alone):
    for extra, needs in {
        "fid": Inception,
        "perceptual": ImageNetClassifier,
        "lora": lambda: LoRA().config(["q"]),
        "text": lambda: SmallCLIP("red"),
    }.items():
        with refused(rf"pip install 'ldmprobe\[{extra}\]'"):
            needs()
    with refused(r"ldmprobe\[text\]"):
        encoder_from({"class_name": "CLIPTextModel", "config": {}})
