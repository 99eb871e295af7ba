"""The first difference between two descriptions in plain values, such as those of a checkpoint and of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

_LONGEST = 200  # of a value in a message
_MOST = 10_000  # settings; a stranger's may hold references that unfold without end
_HASH = re.compile("[0-9a-f]{16}([0-9a-f]{48})?")


def first_difference(theirs: object, ours: object, place: str = "") -> str | None:
    """In words, such as "network.sample_size is 8, this configuration's is 16", or of hashes "weights are others"; None
    if there is none. Lists and tuples are alike, and so are what is missing and None.
    """
    one, other = ({} if value is None else value for value in (theirs, ours))
    if isinstance(one, dict) and isinstance(other, dict):
        keys = {**one, **other}
        found = (first_difference(one.get(key), other.get(key), f"{place}.{key}".lstrip(".")) for key in keys)
        return next((text for text in found if text), None)
    same = _plain(theirs) == _plain(ours)
    if not same and all(_HASH.fullmatch(str(value)) for value in (theirs, ours)):
        return f"{place} are others"
    return None if same else f"{place} is {_short(theirs)}, this configuration's is {_short(ours)}"


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    longest = 12 if _HASH.fullmatch(text) else _LONGEST  # of a hash the start will do
    return text if len(text) <= longest else f"{text[:longest]}…"


def changes(theirs: object, ours: object) -> Iterator[tuple[str, str, str]]:
    """All settings that are not the same: dotted key, their value and ours as text, "not set" where there is none."""
    one, other = (dict(islice(flat(each), _MOST)) for each in (theirs, ours))
    for key in {**one, **other}:
        before, now = one.get(key, "not set"), other.get(key, "not set")
        if before != now:
            yield key, _short(before), _short(now)


def flat(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted key, text) pairs."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from flat(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for k, each in enumerate(value):
            yield from flat(each, f"{key}[{k}]")
    else:
        yield key, str(value)
