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
from ldmprobe.types import PlainValues

_NONCE = secrets.token_urlsafe(16)  # on every script of ours: unknown to whoever wrote the records
# Plotly gives a chart that is folded away no width; it asks again when the window is resized.
_UNFOLDED = (
    "document.querySelectorAll('details').forEach("
    "each => each.addEventListener('toggle', () => dispatchEvent(new Event('resize'))));"
    # Nor does a chart that is drawn while the page is read know whether its card will share a row.
    "addEventListener('load', () => dispatchEvent(new Event('resize')));"
)
_CHART_CONFIG = {"displayModeBar": False, "responsive": True}


def page(title: str, header: str, sections: str, more_css: str = "") -> str:
    """Return a whole page, self-contained; ``title`` is text, ``header`` and ``sections`` are HTML."""
    from plotly.offline import get_plotlyjs

    css = (files("ldmprobe.tracking") / "report.css").read_text(encoding="utf-8") + more_css
    policy = (
        f"default-src 'none'; script-src 'nonce-{_NONCE}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)} · ldmprobe</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{css}</style>'
        f"{script(get_plotlyjs())}</head><body><header>{header}</header>"
        f"<main>{sections}{script(_UNFOLDED)}<footer>Written by ldmprobe "
        f"{escape(__version__)}.</footer></main></body></html>"
    )


def guarded(heading: str, draw: Callable[..., str], *args: object) -> str:
    """Return the section ``draw(*args)``, or a sentence in its place where the records do not hold what it draws."""
    try:
        return draw(*args)
    except Exception as error:  # noqa: BLE001 (whatever a stranger's records lead to, in numpy or plotly)
        reason = f"{type(error).__name__}: {error}"[:300]
        warnings.warn(f"'{heading}' could not be drawn from these records ({reason}).", stacklevel=4)
        return section(heading, f"Could not be drawn from these records ({escape(reason)}).", "")


def section(heading: str, text: str, body: str, wide: bool = False) -> str:
    """Return a section; ``heading`` is text, the rest is HTML. A ``wide`` one of ``pairs`` has a row of its own."""
    return f"<section{' class=wide' * wide}><h2>{escape(heading)}</h2><p>{text}</p>{body}</section>"


def pairs(sections: Sequence[str]) -> str:
    """Return sections side by side, two in a row where there is room."""
    return f'<div class="pair">{"".join(sections)}</div>' if sections else ""


def folded(summary: str, body: str) -> str:
    """Return HTML that is folded away under a line of text."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def samples_with_slider(frames: Mapping[int, Sequence[str]]) -> str:
    """Return the last of several grids of images, as data URIs by training step, and a slider that shows the others."""
    steps, last = list(frames), list(frames.values())[-1]
    pictures = "".join(f'<img alt="sample {i}" src="{uri}">' for i, uri in enumerate(last))
    grid = f'<div class="samples">{pictures}</div>'
    if len(frames) < 2:
        return grid
    code = (
        f"(() => {{ const frames = {json.dumps(list(frames.values()))}, steps = {json.dumps(steps)};"
        "const slider = document.currentScript.previousElementSibling, [label, input] = slider.children;"
        "const images = slider.previousElementSibling.children;"
        "input.addEventListener('input', () => {"
        "const k = +input.value; frames[k].forEach((uri, i) => { images[i].src = uri; });"
        "label.textContent = 'training step ' + steps[k].toLocaleString('en'); }); })();"
    )
    end = len(frames) - 1
    slider = f'<input type="range" min="0" max="{end}" value="{end}" aria-label="training step">'
    return f'{grid}<div class="slider"><output>training step {steps[-1]:,}</output>{slider}</div>{script(code)}'


def script(code: str) -> str:
    """Return a script of ours, which the policy lets run."""
    return f'<script nonce="{_NONCE}">{code}</script>'


def chart(figure: PlainValues) -> str:
    """Return a figure of plotly.js as HTML."""
    from plotly.io import to_html

    html: str = to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        config=_CHART_CONFIG,
        default_width="100%",
        auto_play=False,
        validate=False,
    )
    # Every tag is plotly's own: it writes the "<" of data as \\u003c.
    return html.replace("<script", f'<script nonce="{_NONCE}"')
