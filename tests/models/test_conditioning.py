"""Conditions: from a batch, for a probe's samples, and none."""

import ast
import math
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ldmprobe import ClassConditioning, Conditions, LatentCodec, Unconditional
from tests.helpers import refused, tiny_unet
from tests.pipelines import dit

CPU = torch.device("cpu")


def data(num_classes: int | None) -> SimpleNamespace:
    """What of a data module a class conditioning looks at."""
    return SimpleNamespace(num_classes=num_classes, batch_names=("image", *([] if num_classes is None else ["label"])))


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
def test_labels_become_the_null_class_as_often_as_asked(dropout):
    torch.manual_seed(0)
    n = 20_000
    labels = torch.arange(n) % 7
    conditioning = ClassConditioning(7, dropout)
    trained = conditioning.for_training({"label": labels})["class_labels"]
    assert torch.equal(conditioning.from_batch({"label": labels})["class_labels"], labels)  # outside of training
    dropped = trained == 7
    assert abs(dropped.double().mean() - dropout) <= 4 * math.sqrt(dropout * (1 - dropout) / n)  # standard error
    assert torch.equal(trained[~dropped], labels[~dropped])


def test_a_samples_class_is_a_function_of_its_number():
    conditioning = ClassConditioning(3)
    assert conditioning.for_samples(torch.arange(5))["class_labels"].tolist() == [0, 1, 2, 0, 1]
    assert conditioning.for_samples(torch.tensor([4]))["class_labels"].tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 1] * 50, ""),
        ([0] * 56 + [1] * 44, ""),
        ([0] * 90 + [1] * 10, "the 2 classes in equal shares, and the data's have 10.0% to 90.0% each"),
    ],
    ids=["even", "by chance", "uneven"],
)
def test_samples_in_equal_shares_of_data_that_are_not_are_told_of(labels, told):
    condition = {"class_labels": torch.tensor(labels)}
    assert told in ClassConditioning(2).unlike(condition)
    assert bool(ClassConditioning(2).unlike(condition)) == bool(told)
    assert Conditions([ClassConditioning(2)]).unlike(condition) == ClassConditioning(2).unlike(condition)


def test_the_null_class_comes_after_the_last_and_is_one_that_a_fitting_network_embeds():
    network, conditioning = tiny_unet(num_class_embeds=11), ClassConditioning(10)
    conditioning.prepare(network, data(10), LatentCodec())
    null = conditioning.null(2, CPU)
    assert null["class_labels"].tolist() == [10] * 2
    network(torch.zeros(2, 2, 8, 8), torch.tensor([0, 1]), **null)  # which takes whole numbers alone


def test_unconditional_is_nothing():
    conditioning, ids = Unconditional(), torch.arange(3)
    conditions = [conditioning.from_batch({"image": torch.zeros(3, 1, 2, 2)}), conditioning.for_samples(ids)]
    assert [*conditions, conditioning.null(3, CPU), conditioning.for_training({})] == [{}] * 4


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"num_classes": 0}, {"num_classes": 3, "dropout": 1.0}, {"num_classes": 3, "dropout": -0.1}]
)
def test_arguments_out_of_range_are_refused(wrong):
    with refused(r"ClassConditioning got .*; expected"):
        ClassConditioning(**wrong)


def test_a_batch_without_labels_is_refused():
    with refused("set the data's `label_column`"):
        ClassConditioning(3).from_batch({"image": torch.zeros(1)})


@pytest.mark.parametrize("labels", [[1, 2, 3], [-1, 0, 1]])
def test_labels_that_would_be_the_null_class_or_none_are_refused(labels):
    with refused(f"labels from {labels[0]} to {labels[2]}, and ClassConditioning num_classes 3, classes 0 to 2"):
        ClassConditioning(3).from_batch({"label": torch.tensor(labels)})


@pytest.mark.parametrize(
    ("num_classes", "network", "classes", "told"),
    [
        (3, nn.Identity, None, "set the data's `label_column`"),
        (5, nn.Identity, 10, r"class label is out of range: .* \(labels 0 to 9\).* set it to 10"),
        (10, tiny_unet, 10, "UNet2DModel has num_class_embeds None; expected 11"),
        (10, partial(tiny_unet, num_class_embeds=10), 10, "UNet2DModel has num_class_embeds 10; expected 11"),
    ],
)
def test_data_or_a_network_of_other_classes_are_refused(num_classes, network, classes, told):
    with refused(told):
        ClassConditioning(num_classes).prepare(network(), data(classes), LatentCodec())


def test_a_dit_with_fewer_classes_is_refused():
    ClassConditioning(5).prepare(dit(5), data(5), LatentCodec())
    with refused("num_embeds_ada_norm 5; expected 10"):
        ClassConditioning(10).prepare(dit(5), data(10), LatentCodec())


# --- nobody asks which conditioning it is -----------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("ldmprobe", "callbacks", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]


def questions(source: str) -> list[str]:
    """Tests of a conditioning's class, comparisons of a class's name or of a family of pipelines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.Call | ast.Compare) else ""
        if isinstance(node, ast.Call) and re.match(r"(isinstance|issubclass)\(", text):
            found += [text] if re.search(r"Conditioning\b|Unconditional|TextEncoder", text) else []
        elif isinstance(node, ast.Compare) and re.search(r"FAMILIES\[|Conditioning['\"]", text):
            found.append(text)
    return found


def test_the_questions_that_are_looked_for_are_found():
    assert questions("isinstance(model.conditioning, TextConditioning)\nfamily == FAMILIES['DiTPipeline']") != []
    assert questions("type(conditioning).__name__ == 'ClassConditioning'") != []


def test_nobody_asks_which_conditioning_it_is():
    asked = {path: questions(path.read_text()) for path in SOURCES if "models/conditioning" not in path.as_posix()}
    assert {path: found for path, found in asked.items() if found} == {}
