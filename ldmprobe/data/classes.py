"""Classes as a dataset names them, and whether its splits agree on them."""

from __future__ import annotations

from ldmprobe.errors import ConfigurationError
from ldmprobe.types import Rows


def class_names(rows: Rows, column: str) -> list[str] | None:
    """Return the names of the classes in a column, where the dataset has them."""
    from datasets import ClassLabel

    feature = (rows.features or {}).get(column)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def check_same_classes(split: str, names: list[str] | None, other: str, others: list[str] | None) -> None:
    """Raise ConfigurationError if two splits number their classes otherwise, as those encoded one by one do."""
    for number, (ours, theirs) in enumerate(zip(names or (), others or (), strict=False)):
        if ours != theirs:
            raise ConfigurationError(
                f"Class {number} is {ours!r} in split {split!r} and {theirs!r} in split {other!r}; have both number "
                "their classes alike, such as by `cast_column` to one `datasets.ClassLabel(names=…)`."
            )
