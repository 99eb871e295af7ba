"""Digests: the same for the same value, another for another."""

import copy

import numpy as np
import pytest
import torch

from ldmprobe.io.digest import digest, fingerprint, weights_fingerprint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([1.0]), torch.nextafter(torch.tensor([1.0]), torch.tensor(2.0))),
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.bfloat16)),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ([1, [2]], [[1], 2]),
        (True, 1),
        (None, False),
        ("1", 1),
    ],
)
def test_digests_tell_values_apart(one, other):
    assert digest(one).hex != digest(other).hex
    assert digest(one) == digest(copy.deepcopy(one))


def test_bytes_are_counted_whatever_the_layout():
    image = torch.arange(24, dtype=torch.bfloat16).view(2, 3, 4)
    assert digest(image).num_bytes == 48
    assert digest(image.transpose(0, 2)) == digest(image.transpose(0, 2).contiguous())


def test_fingerprint_tells_values_shapes_and_dtypes_apart():
    arrays = [np.arange(4.0), np.arange(4), np.arange(4.0).reshape(2, 2), np.arange(4.0) + 1e-9]
    assert len({fingerprint(array) for array in arrays}) == 4
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(torch.arange(4.0)[::2]) == fingerprint(np.array([0, 2], dtype=np.float32))


def test_weights_are_known_by_their_values_alone():
    weights = [torch.arange(200_000.0).view(2, -1), torch.arange(5), torch.ones(3)]
    assert weights_fingerprint(weights) == weights_fingerprint(
        [torch.ones(3).half(), weights[0].flatten(), torch.ones(3)]
    )
    assert weights_fingerprint(weights) != weights_fingerprint([weights[0] * (1 + 1e-6), *weights[1:]])
