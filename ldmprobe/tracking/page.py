"""The frame of every HTML page: sections, charts, pictures, and a policy that keeps strangers' records harmless.

Records and configuration may be a stranger's. All their text is escaped; their images are shown only if they are PNGs; a section that cannot be
drawn from them says so; and the page's own policy forbids the browser to load anything or to run a script that is not of this file.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable
from html import escape
from importlib.resources import files
from typing import Any

from ldmprobe import __version__

_NONCE = secrets.token_urlsafe(16)  # on every script of ours: unknown to whoever wrote the records
_CHART_CONFIG = {"displayModeBar": False, "responsive": True}


def page(title: str, header: str, sections: str, more_css: str = "") -> str:
    """A whole page, self-contained; ``title`` is text, ``header`` and ``sections`` are HTML."""
    from plotly.offline import get_plotlyjs

    css = (files("ldmprobe.tracking") / "report.css").read_text(encoding="utf-8") + more_css
    policy = f"default-src 'none'; script-src 'nonce-{_NONCE}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)} · ldmprobe</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{css}</style>'
        f"{script(get_plotlyjs())}</head><body><header>{header}</header>"
        f"<main>{sections}<footer>Written by ldmprobe {escape(__version__)}.</footer></main></body></html>"
    )


def guarded(heading: str, draw: Callable[[], str]) -> str:
    """A section, or a sentence in its place where the records do not hold what it draws."""
    try:
        return draw()
    except Exception as error:  # noqa: BLE001 (whatever a stranger's records lead to, in numpy or plotly)
        reason = f"{type(error).__name__}: {error}"[:300]
        warnings.warn(f"'{heading}' could not be drawn from these records ({reason}).", stacklevel=4)
        return section(heading, f"Could not be drawn from these records ({escape(reason)}).", "")


def section(heading: str, text: str, body: str) -> str:
    """``heading`` is text; the rest is HTML."""
    return f"<section><h2>{escape(heading)}</h2><p>{text}</p>{body}</section>"


def script(code: str) -> str:
    """A script of ours, which the policy lets run."""
    return f'<script nonce="{_NONCE}">{code}</script>'


def chart(figure: Any) -> str:
    """A plotly figure, interactive."""
    html = figure.to_html(
        full_html=False, include_plotlyjs=False, config=_CHART_CONFIG, default_width="100%", auto_play=False
    )
    # Every tag is plotly's own: it writes the "<" of data as \\u003c.
    return html.replace("<script", f'<script nonce="{_NONCE}"')
