"""What a command line calls by a name, and a record by its name and settings: samplers and grids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import ClassVar, TypeVar

from ldmprobe.types import PlainValues, kinds_of


class Named:
    """A part with a name and with settings: plain values, each kept as the attribute of its name.

    Attributes:
        name: what records and the command line call it.
        variants: the names of a class that has several, each with the settings that it stands for.
    """

    name: str = ""
    variants: ClassVar[Mapping[str, PlainValues]] = {}

    @property
    def settings(self) -> PlainValues:
        """Its settings that differ from their defaults, by name; a part among them in words."""
        parameters = signature(type(self)).parameters.values()
        changed = {each.name: vars(self)[each.name] for each in parameters if vars(self)[each.name] != each.default}
        return {name: each.in_words if isinstance(each, Named) else each for name, each in changed.items()}

    @property
    def in_words(self) -> str:
        """The name of the variant that it is; else name and settings, such as "ddim, eta 1.0"."""
        settings = self.settings
        variant = next((name for name, its in self.variants.items() if its == settings), None)
        return variant or ", ".join([self.name, *(f"{name} {value}" for name, value in settings.items())])


Part = TypeVar("Part", bound=Named)


def by_name(base: type[Part]) -> dict[str, Callable[[], Part]]:
    """Return how each part of this kind that has been imported is made, the user's own included, by its name."""
    named: dict[str, Callable[[], Part]] = {}
    for kind in kinds_of(base):
        for name, settings in (kind.variants or {kind.name: {}}).items():
            named[name] = partial(kind, **settings)
    named.pop("", None)  # of a class that is only to be subclassed
    return named
