"""The frame of every HTML page: sections, charts, pictures, and a policy that keeps strangers' records harmless.

Records and configuration may be a stranger's. All their text is escaped; their images are shown only if they are PNGs;
a section that cannot be drawn from them says so; and the page's own policy forbids the browser to load anything or to
run a script that is not of this file.
"""

from __future__ import annotations

import json
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files

from ldmprobe import __version__
from ldmprobe.tracking.glossary import definitions, with_terms

_NONCE = secrets.token_urlsafe(16)  # on every script of ours: unknown to whoever wrote the records


def page(title: str, header: str, sections: str, more_css: str = "") -> str:
    """Return a whole page, self-contained; ``title`` is text, ``header`` and ``sections`` are HTML."""
    css, code = ((files("ldmprobe.tracking") / name).read_text("utf-8") for name in ("report.css", "page.js"))
    terms = definitions(sections)
    glossary = folded("Glossary", f"<dl>{terms}</dl>") if terms else ""
    policy = (
        f"default-src 'none'; script-src 'nonce-{_NONCE}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)} · ldmprobe</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{css}{more_css}</style></head>'
        f"<body><header>{header}</header><main>{sections}{glossary}"
        f"<footer>Written by ldmprobe {escape(__version__)}.</footer></main>"
        f'<script nonce="{_NONCE}">{code}</script></body></html>'
    )


def guarded(heading: str, draw: Callable[..., str], *args: object) -> str:
    """Return the section ``draw(*args)``, or a sentence in its place where the records do not hold what it draws."""
    try:
        return draw(*args)
    except Exception as error:  # noqa: BLE001 (whatever a stranger's records lead to, in numpy)
        reason = f"{type(error).__name__}: {error}"[:300]
        warnings.warn(f"'{heading}' could not be drawn from these records ({reason}).", stacklevel=4)
        return section(heading, "", f"<p>Could not be drawn from these records ({escape(reason)}).</p>")


def section(heading: str, text: str, body: str, wide: bool = False) -> str:
    """Return a section; ``heading`` is text, the rest is HTML. A ``wide`` one of ``pairs`` has a row of its own."""
    said = f"<p>{with_terms(text)}</p>" if text else ""
    return f"<section{' class=wide' * wide}><h2>{escape(heading)}</h2>{said}{body}</section>"


def pairs(sections: Sequence[str]) -> str:
    """Return sections side by side, two in a row where there is room."""
    return f'<div class="pair">{"".join(sections)}</div>' if sections else ""


def folded(summary: str, body: str) -> str:
    """Return HTML that is folded away under a line of text."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def samples_over_training(frames: Mapping[int, Sequence[str]], stacked: bool = False) -> str:
    """Return the last of several grids of images, as data URIs by training step; the page's slider shows the others.

    Args:
        stacked: each image is of several, one above the other.
    """
    pictures = "".join(f'<img alt="sample {i}" src="{uri}">' for i, uri in enumerate(list(frames.values())[-1]))
    told = "" if len(frames) < 2 else f" data-frames='{json.dumps(list(frames.values()))}' data-steps='{[*frames]}'"
    return f'<div class="samples{" stacked" * stacked}"{told}>{pictures}</div>'


def slider_over_training(steps: Sequence[int]) -> str:
    """Return the page's slider over these training steps; nothing where there are fewer than two."""
    if len(steps) < 2:
        return ""
    end = len(steps) - 1
    return (
        f'<div class="training" data-training="{list(steps)}"><output>step {steps[-1]:,}</output>'
        f'<input type="range" min="0" max="{end}" value="{end}" aria-label="training step">'
        '<button type="button">▶ play</button></div>'
    )
