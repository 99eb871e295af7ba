"""A comparison in words and figures, as HTML."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from html import escape

from ldmprobe.analysis.comparison import BandGain

_NAMED = 4  # of many runs, in a heading


def listed(names: Sequence[str]) -> str:
    """Return a list such as "A, B and C"; text, not HTML."""
    if len(names) > _NAMED:
        return f"{len(names)} others"
    return " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), names[-1]])


def mark(band: BandGain, other_seed: bool = False) -> str:
    """A class of compare.css; of another seed of the same configuration, neither better nor worse."""
    return "unclear" if not band.significant or other_seed else "better" if band.gain > 0 else "worse"


def verdict(label: str, band: BandGain, other_seed: bool = False) -> str:
    """Return a sentence such as "B is better at log-SNR −3…0 by 1.2 ± 0.3 nats"; with ``other_seed``, "B came out 1.2 ±
    0.3 nats lower …".
    """
    label = escape(label)
    where = "over all levels" if band.everywhere else f"at log-SNR {band.name}"
    if not math.isfinite(band.gain):
        return f"{label} or the first run is not finite {where}"
    if band.gain == band.half_width == 0:
        return f"{label} is the same {where}"
    width = _number(band.half_width, band.half_width)
    if band.significant and other_seed:
        gain, word = _number(abs(band.gain), band.half_width), "lower" if band.gain > 0 else "higher"
        return f"{label}, another seed, came out {gain} ± {width} nats {word} {where}"
    if band.significant:
        gain, word = _number(abs(band.gain), band.half_width), mark(band)
        return f'{label} is <span class="{word}">{word}</span> {where} by {gain} ± {width} nats'
    low, high = (_number(band.gain + sign * band.half_width, band.half_width, "+") for sign in (-1, 1))
    reason = " for sure, with so many bands tested" if band.p_value < 0.05 and not band.everywhere else ""
    return f"{label} cannot be told apart {where}{reason}: between {low} and {high} nats"


def sorted_out(totals: Mapping[str, BandGain], other_seeds: Collection[str] = ()) -> list[str]:
    """Return which of many runs are better, worse, or neither, over all levels, and which are other seeds of the
    first.
    """
    groups = {"better": "better", "worse": "worse", "unclear": "not told apart"}
    tested = {label: total for label, total in totals.items() if label not in other_seeds}
    found = {word: [escape(label) for label, total in tested.items() if mark(total) == word] for word in groups}
    told = [f'<span class="{word}">{groups[word]}</span>: {", ".join(names)}' for word, names in found.items() if names]
    seeds = [escape(label) for label in totals if label in other_seeds]
    return [*told, *([f"other seeds of the same configuration: {', '.join(seeds)}"] if seeds else [])]


def plus_minus(value: float, half_width: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{_number(value, half_width, '+')} ± {_number(half_width, half_width)}"


def probability(p: float) -> str:
    return "" if not math.isfinite(p) else "&lt; 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def one_decimal(value: float) -> str:
    return f"{value:,.1f}" if math.isfinite(value) else "not finite"


def table(head: Sequence[str], *bodies: str) -> str:
    """Return a table that scrolls where it is wide, of the names of its columns and bodies of rows; all are HTML."""
    heads = "".join(f"<th>{each}</th>" for each in head)
    told = "".join(f"<tbody>{body}</tbody>" for body in bodies)
    return f'<div class="scroll"><table class="verdicts"><thead><tr>{heads}</tr></thead>{told}</table></div>'


def cells_of(row: Sequence[str]) -> str:
    """Return a row of cells, which are HTML."""
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"


def _number(value: float, half_width: float, sign: str = "-") -> str:
    """Return a number with as many decimals as its interval leaves meaning to."""
    decimals = min(max(1 - math.floor(math.log10(half_width)), 0), 6) if half_width > 0 else 1
    return f"{value:{sign},.{decimals}f}".replace("-", "−")
