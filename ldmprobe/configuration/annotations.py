"""Annotations of diffusers' classes, mended where they say less than the classes take."""

from __future__ import annotations

import inspect
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints


def allow_tuples_of_any_length(cls: type) -> None:
    """Have a class of diffusers that annotates an argument as ``tuple[int]``, as AutoencoderKL does its
    ``block_out_channels``, say ``tuple[int, ...]``, which is what it takes. Other classes stay as they are.
    """
    if not cls.__module__.startswith("diffusers."):
        return
    init = inspect.unwrap(cls.__init__)  # type: ignore[misc]
    if any("tuple" in str(hint).lower() for hint in inspect.get_annotations(init).values()):
        init.__annotations__ = {name: _of_any_length(hint) for name, hint in get_type_hints(init).items()}


def _of_any_length(hint: object) -> object:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is tuple and len(parts) == 1:
        return tuple[_of_any_length(parts[0]), ...]  # type: ignore[misc]
    if origin in (Union, UnionType):
        return Union[tuple(_of_any_length(part) for part in parts)]  # noqa: UP007 (of a computed tuple)
    return hint
