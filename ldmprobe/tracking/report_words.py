"""What a report says of its records, in words."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking.charts.curves import CURVES
from ldmprobe.tracking.charts.heatmap import COLUMNS
from ldmprobe.tracking.charts.scatter import FRAMES, POINTS

_PROMPTS_SHOWN = 20


def meaning(record: ProbeRecord, name: str) -> str:
    """Return what a metric means, what this record adds to it, and what moves its samples off the data whatever the
    model.
    """
    note = record.provenance.get("notes", {}).get(name)
    text = escape(record.metric(name).meaning) + (f" <b>{escape(str(note))}</b>" if note else "")
    for caveat in record.provenance.get("caveats", []):
        text += f" <b>{escape(sentence(caveat))[:400]}</b>: what parts them from the ideal and from real data is its "
        text += "doing, too."
    return text


def fact(value: object) -> str:
    """Return a value of a record in as many digits as one reads; the record itself has them all."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {fact(each)}" for key, each in value.items())
    return ", ".join(map(fact, value)) if isinstance(value, list | tuple) else str(value)


def sentence(text: object) -> str:
    return str(text)[:1].upper() + str(text)[1:]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def some_of(shown: int, count: int) -> str:
    return f" Shown are {shown} of {count:,} probes, evenly spaced." if shown < count else ""


def left_out(counts: Mapping[str, int]) -> str:
    """Return what is left out of a page of many records."""
    if max(counts.values(), default=0) <= FRAMES:
        return ""
    most = max(counts, key=lambda probe: counts[probe])
    return (
        f" Of the many records ({counts[most]:,} of {most}) the page draws some, evenly spaced, the first and the last "
        f"among them: at most {COLUMNS} in heatmaps and over training, {CURVES} as curves, {FRAMES} with scatters (of "
        f"at most {POINTS} samples a level) and samples (large ones reduced). The records themselves, in probes/, are "
        "whole."
    )


def prompted(record: ProbeRecord) -> str:
    prompts = record.provenance.get("prompts")
    if not isinstance(prompts, list):
        return ""
    quoted = ", ".join(f"“{escape(str(prompt)[:200])}”" for prompt in prompts[:_PROMPTS_SHOWN])
    return f" Prompts, in turn: {quoted}{' …' if len(prompts) > _PROMPTS_SHOWN else ''}."
