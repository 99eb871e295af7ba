"""The verdict as the first thing on a page, or in a notebook: a pill, what to do, and a ribbon over noise levels."""

from __future__ import annotations

import re
from html import escape
from math import isfinite

from ldmprobe.probing.verdict import BandVerdict, Verdict

_CLASSES = {"✓": "fine", "•": "unfinished", "▲": "look", "?": "unknown"}


def verdict_html(verdict: Verdict) -> str:
    """Return the verdict as HTML; its colors are in ``report.css``."""
    ribbon = "".join(_cell(band, verdict.bound) for band in verdict.bands)
    if ribbon:
        ribbon = (
            f'<div class="ribbon">{ribbon}</div>'
            '<div class="ends"><span>← pure noise · layout, class</span><span>noise level, log-SNR</span>'
            "<span>fine detail · clean image →</span></div>"
        )
    symbol = verdict.state.symbol
    return (
        f'<div class="verdict"><span class="pill {_CLASSES[symbol]}">{symbol} {escape(verdict.state.value)}</span>'
        f"<p><b>{escape(verdict.sentence)}</b> {_with_code(verdict.action)}</p></div>{ribbon}"
        f'<p class="confidence">{escape(verdict.confidence)}</p>'
    )


def _cell(band: BandVerdict, bound: float) -> str:
    share = f"{band.nats / bound:.0%} of the bound" if isfinite(band.nats) and bound else ""
    told = f"{band.state.value}: {band.evidence}"
    return (
        f'<details class="{_CLASSES[band.symbol]}"><summary><span aria-hidden="true">{band.symbol}</span>'
        f"<b>{escape(band.name)}</b><em>{share}</em></summary><p>{escape(told)}</p></details>"
    )


def _with_code(text: str) -> str:
    """Return text as HTML, what stands between backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))
