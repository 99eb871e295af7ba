"""Digests: hashes that answer whether two values, or the weights of two networks, are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from enum import Enum
from hashlib import blake2b
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_VALUES_HASHED = 65_536  # of each weight
_PLAIN = (int, float, complex, str, bytes, np.generic, torch.dtype, torch.device, PurePath, Enum, type, type(None))


class Digest(NamedTuple):
    """A hash of a value, and the number of bytes that went into it."""

    hex: str
    num_bytes: int


def digest(value: object) -> Digest:
    """Hash tensors, arrays, numbers, text, dataclasses and nested collections of them: type, shape and raw bytes.

    Nothing is pickled, because a pickle is not a function of the value. A tensor and the equal array have one digest,
    as have equal mappings in any order. Of an object of another kind only the type counts.
    """
    state = blake2b(digest_size=16)
    num_bytes = 0

    def feed(header: str, content: bytes | memoryview = b"") -> None:
        nonlocal num_bytes
        state.update(f"{header};".encode())
        state.update(content)
        num_bytes += len(content)

    def visit(value: object) -> None:
        if isinstance(value, Tensor):
            raw = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
            feed(f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}", raw)
        elif isinstance(value, np.ndarray):
            feed(f"{value.dtype} {value.shape}", value.tobytes())
        elif isinstance(value, Mapping):
            feed(f"mapping {len(value)}")
            for key in sorted(value, key=repr):
                visit(key)
                visit(value[key])
        elif isinstance(value, list | tuple):
            feed(f"sequence {len(value)}")
            for item in value:
                visit(item)
        elif isinstance(value, _PLAIN):
            feed(type(value).__name__, repr(value).encode())
        elif dataclasses.is_dataclass(value):
            visit(vars(value))
        else:
            feed(type(value).__qualname__)

    visit(value)
    return Digest(state.hexdigest(), num_bytes)


def fingerprint(*parts: object) -> str:
    """Return 16 hexadecimal digits that identify the parts, in this order: records are comparable where they agree."""
    return digest(parts).hex[:16]


def weights_fingerprint(weights: Iterable[Tensor]) -> str:
    """Return the fingerprint of a network's weights, whatever their names, order and dtype.

    Up to 65,536 evenly spaced values of each weight are compared as float32, so that any training changes it.
    """
    hashes = {  # a set: some files have tied weights twice
        fingerprint(values[:: -(-len(values) // _VALUES_HASHED)].float())
        for weight in weights
        if weight.is_floating_point() and len(values := weight.detach().flatten())  # old files have positions, too
    }
    return fingerprint(sorted(hashes))
