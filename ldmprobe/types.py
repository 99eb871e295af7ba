"""Names for what data, configurations, checkpoints and other libraries hand over without types."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, TypeVar

Kind = TypeVar("Kind")

PlainValues = dict[str, Any]
"""Nested plain values by name, such as JSON and YAML hold: descriptions, settings, provenance."""

Batch = dict[str, Any]
"""The columns of a batch, or of one sample or row, by name: "image", "label", "caption", "index", …"""

StateDict = dict[str, Any]
"""The state of a module, a callback or a whole checkpoint, by name."""

Rows = Any
"""A dataset of Hugging Face, in memory (`datasets.Dataset`) or streamed (`datasets.IterableDataset`)."""

Component = Any
"""A pipeline of diffusers, one of its parts or their configuration: which attributes it has, its class decides, which
is known when it runs."""


def kinds_of(base: type[Kind]) -> Iterator[type[Kind]]:
    """Yield the subclasses of a class that have been imported, the user's own included, however far below it."""
    for kind in base.__subclasses__():
        yield kind
        yield from kinds_of(kind)


def is_table(rows: Rows) -> bool:
    """Return whether the rows are all at hand, and not streamed."""
    return isinstance(rows, Sized)
