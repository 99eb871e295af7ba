"""The glossary of docs/GLOSSARY.md on a page: a term links to what it means, which is said where one points at it or
comes to it with the keyboard.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape
from importlib.resources import files

_ENTRY = re.compile(r"^\*\*(.+?)\*\*\n:   (.+?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


def with_terms(text: str) -> str:
    """Return HTML whose first mention of each term of the glossary is a link; what is within tags stays."""
    anchors, found = _terms(), set()
    pattern = rf"<[^>]*>|\b({'|'.join(map(re.escape, sorted(anchors, key=len, reverse=True)))})s?\b"

    def link(match: re.Match[str]) -> str:
        anchor = anchors.get((match[1] or "").lower())
        if anchor is None or anchor in found:
            return match[0]
        found.add(anchor)
        return f'<a class="term" href="#{anchor}">{match[0]}</a>'

    return re.sub(pattern, link, text, flags=re.IGNORECASE) if anchors else text


def definitions(page: str) -> str:
    """Return the terms that a page links to with what they mean, as a list in HTML; "" where there are none."""
    linked = set(re.findall(r'<a class="term" href="#([\w-]+)">', page))
    return "".join(
        f'<dt id="{anchor}">{escape(heading)}</dt><dd>{_plain(meaning)}</dd>'
        for heading, meaning in _entries()
        if (anchor := _anchor(heading)) in linked
    )


@cache
def _entries() -> list[tuple[str, str]]:
    """Return headings and meanings; none where the checkout has no links, so that the file is not the glossary."""
    text = (files("ldmprobe.tracking") / "GLOSSARY.md").read_text("utf-8")
    return [(heading, " ".join(meaning.split())) for heading, meaning in _ENTRY.findall(text)]


@cache
def _terms() -> dict[str, str]:
    """Return where each term is explained, by its name in lower case: "Noise level, log-SNR (λ)" names two."""
    return {
        name.strip().lower(): _anchor(heading)
        for heading, _ in _entries()
        for name in re.split(r",| and ", re.sub(r"\(.*?\)", "", heading))
    }


def _anchor(heading: str) -> str:
    return "term-" + re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def _plain(meaning: str) -> str:
    """Return Markdown as HTML: what is emphasized, and code."""
    return re.sub(r"`(.+?)`", r"<code>\1</code>", re.sub(r"\*(.+?)\*", r"<i>\1</i>", escape(meaning)))
