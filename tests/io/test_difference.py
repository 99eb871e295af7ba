"""The first difference of two descriptions, in words."""

import pytest

from ldmprobe.io.difference import first_difference

HASH = 32 * "0a"
DIFFERENT = {
    "a is 1, this configuration's is 2": ({"a": 1, "b": 1}, {"a": 2, "b": 2}),
    "a.b.c is [1, 2], this configuration's is [1, 3]": ({"a": {"b": {"c": [1, 2]}}}, {"a": {"b": {"c": [1, 3]}}}),
    "a.b is 1, this configuration's is None": ({"a": {"b": 1}}, {"a": None}),
    "a is None, this configuration's is 0": ({}, {"a": 0}),
    "a is {'b': 1}, this configuration's is one": ({"a": {"b": 1}}, {"a": "one"}),
    "a are others": ({"a": HASH}, {"a": HASH[::-1]}),
    "a is 0a0a0a0a0a0a…, this configuration's is None": ({"a": HASH}, {"a": None}),
    f"a is {'x' * 200}…, this configuration's is y z": ({"a": "x" * 201}, {"a": "y\n  z"}),
}
ALIKE = {
    "in another order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "through the round trip of a file": ({"a": [1, (2, 3)]}, {"a": (1, [2, 3])}),
    "an option that a later version of a library added": ({"network": {"a": 1}}, {"network": {"a": 1, "b": None}}),
    "no part at all": ({"a": None}, {}),
}


@pytest.mark.parametrize("words", DIFFERENT)
def test_it_is_named_by_its_place(words):
    assert first_difference(*DIFFERENT[words]) == words


@pytest.mark.parametrize("how", ALIKE)
def test_these_are_alike(how):
    assert first_difference(*ALIKE[how]) is None
