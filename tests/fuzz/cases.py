"""A property tried on a few cases by `make test`, always the same ones, and on many new ones by
`make test-reliability`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def fuzz(
    short: int, long: int, *strategies: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test of a property, called with an own folder and one value of each strategy."""

    def decorate(holds: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("cases", [short, pytest.param(long, marks=pytest.mark.reliability)])
        def test(cases: int, tmp_path: Path) -> None:
            tried = 0

            def one(values: tuple[Any, ...]) -> None:
                nonlocal tried
                tried += 1
                holds(tmp_path, *values)

            chosen = settings(
                max_examples=cases,
                derandomize=cases == short,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            chosen(given(st.tuples(*strategies))(one))()
            print(f"{holds.__name__}: {tried} cases")

        test.__name__, test.__doc__, test.__module__ = holds.__name__, holds.__doc__, holds.__module__
        return test

    return decorate


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("</script><script>"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
"""Anything that JSON can say."""


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """``content`` cut short, with bytes changed, put in, taken out, or with a part of it elsewhere."""
    broken = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(broken)))
        match draw(st.sampled_from(["cut", "flip", "insert", "remove", "copy"])):
            case "cut":
                del broken[at:]
            case "flip" if at < len(broken):
                broken[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                broken[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "remove":
                del broken[at : at + draw(st.integers(1, 16))]
            case "copy":
                start = draw(st.integers(0, len(broken)))
                broken[at : at + 8] = broken[start : start + 8]
    return bytes(broken)
