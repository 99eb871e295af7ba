"""Names of columns: those of ldmprobe itself, and what a dataset's may not be called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ldmprobe.data.identity import IMAGE_HASH
from ldmprobe.errors import ConfigurationError

ROW_NUMBER = "__row__"
OWN = (ROW_NUMBER, IMAGE_HASH)
"""Names of columns that are added to a dataset's own."""
RESERVED = ("index", "latent", "moments", "condition", "observed")
"""Names in batches that no column may have."""


class Named(Protocol):
    """A column: its name in the dataset, and in batches."""

    @property
    def column(self) -> str: ...
    @property
    def name(self) -> str: ...


def check_names(image: Named, others: Sequence[Named], further: Sequence[Named]) -> None:
    """Raise ConfigurationError where two columns have one name, or one has a name of ldmprobe's own.

    Args:
        others: labels and captions.
        further: the data's `columns`.
    """
    named = [column.column for column in (image, *others)]
    if len(set(named)) < len(named):
        raise ConfigurationError(
            f"ImageData got the columns {', '.join(map(repr, named))} for images, labels and captions; expected "
            "another column for each, or null for labels or captions that are not there."
        )
    names = [column.name for column in (image, *others, *further)]
    if taken := [name for name in names if names.count(name) > 1 or name in RESERVED]:
        raise ConfigurationError(
            f"ImageData got several columns that batches would call {taken[0]!r}, or its own name for something else; "
            "give each of `columns` a `name` of its own."
        )
    if own := [column.column for column in (image, *others, *further) if column.column in OWN]:
        raise ConfigurationError(f"ImageData got a column called {own[0]!r}, a name of its own; rename it.")
