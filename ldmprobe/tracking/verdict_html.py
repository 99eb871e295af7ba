"""The verdict as the first thing on a page, or in a notebook: a pill, what to do, and a ribbon over noise levels."""

from __future__ import annotations

import re
from html import escape
from math import isfinite

from ldmprobe.probing.verdict import BandVerdict, Verdict, signed

CLASSES = {"✓": "fine", "•": "unfinished", "▲": "look", "?": "unknown"}


def verdict_html(verdict: Verdict) -> str:
    """Return the verdict with its ribbon as HTML; the colors are in ``report.css``."""
    ribbon = "".join(_cell(band, verdict.bound) for band in verdict.bands)
    if ribbon:
        ribbon = (
            f'<div class="ribbon">{ribbon}</div>'
            '<div class="ends"><span>← pure noise · layout, class</span><span>noise level, log-SNR</span>'
            "<span>fine detail · clean image →</span></div>"
        )
    return headline_html(verdict) + ribbon + confidence_html(verdict)


def headline_html(verdict: Verdict) -> str:
    """Return the state as a pill, and what is the matter and what to do beside it."""
    symbol = verdict.state.symbol
    return (
        f'<div class="verdict"><span class="pill {CLASSES[symbol]}">{symbol} {escape(verdict.state.value)}</span>'
        f"<p><b>{escape(verdict.sentence)}</b> {_with_code(verdict.action)}</p></div>"
    )


def confidence_html(verdict: Verdict) -> str:
    """Return what the verdict rests on."""
    return f'<p class="confidence">{escape(verdict.confidence)}</p>'


def change_in_words(verdict: Verdict) -> str:
    """Return how the bound has changed since the probe it is compared with; "" where there is none."""
    if verdict.since is None or not isfinite(verdict.change):
        return ""
    return f", {signed(verdict.change)} since step {verdict.since:,}"


def _cell(band: BandVerdict, bound: float) -> str:
    share = f"{band.nats / bound:.0%} of the bound" if isfinite(band.nats) and bound else ""
    told = f"{band.state.value}: {band.evidence}"
    return (
        f'<details class="{CLASSES[band.symbol]}"><summary><span aria-hidden="true">{band.symbol}</span>'
        f"<b>{escape(band.name)}</b><em>{share}</em></summary><p>{escape(told)}</p></details>"
    )


def _with_code(text: str) -> str:
    """Return text as HTML, what stands between backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))
