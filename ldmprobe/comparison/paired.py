"""The sections of a comparison's page that rest on paired differences: who is better where, and in how many steps."""

from __future__ import annotations

import math
from html import escape

from ldmprobe.comparison.findings import Comparison
from ldmprobe.comparison.words import cells_of, mark, one_decimal, plus_minus, probability, table, verdict
from ldmprobe.io.record import ProbeRecord
from ldmprobe.probing.denoising_record import PROBE, log_snr_of
from ldmprobe.tracking.charts.runs import bounds_chart, gains_charts
from ldmprobe.tracking.charts.svg import drawn, drawn_by_choice
from ldmprobe.tracking.comparable import Moment
from ldmprobe.tracking.page import folded, pairs, section
from ldmprobe.tracking.style import class_color

FEW = 4  # runs that are worth a sentence each


def gains_section(comparison: Comparison) -> str:
    if not comparison.gains:
        return ""
    whens = comparison.moments[PROBE]
    tables = [_gains_table(comparison, k) for k in range(len(whens))]
    name, log_snr = escape(comparison.first.label), log_snr_of(first_of(whens[0]))
    first = section(
        "What another seed changes, and at which noise levels"
        if comparison.of_chance
        else "Who is better, and at which noise levels",
        f"Gain over <b>{name}</b> in nats of the likelihood bound, at {escape(whens[0].description)}: the difference "
        "of squared error on the same held-out images with the same noise, ± 95 %. p is corrected for all bands and "
        "runs of the table, the totals among themselves (Holm). It speaks of these networks, on images like these: "
        "another seed of training may fall out differently, and only several seeds can tell methods apart.",
        tables[0]
        + "".join(
            folded(f"The same at {w.description}", table) for w, table in zip(whens[1:], tables[1:], strict=True)
        ),
    )
    charts = gains_charts(log_snr, {w.description: g.levels for w, g in zip(whens, comparison.gains, strict=True)})
    levels = section(
        "The same, level by level",
        f"Paired with {name}: above 0 a run denoises that level better. Bands are 95 % for each level on its own.",
        drawn_by_choice(charts),
    )
    return first + pairs([levels, _bounds_section(comparison)])


def _gains_table(comparison: Comparison, k: int) -> str:
    """Return a row for each run and band, in words; with many runs it is folded away under a row for each run."""
    bodies = []
    for i, (label, bands) in enumerate(comparison.gains[k].bands.items(), start=1):
        rows, seed = [], label in comparison.other_seeds
        for band in [bands[-1], *bands[:-1]]:
            rows.append(
                f"<tr{' class=total' if band.everywhere else ''}><td>{named(label, i)}</td>"
                f'<td>{band.name}</td><td class="{mark(band, seed)}">{plus_minus(band.gain, band.half_width)}</td>'
                f"<td>{probability(band.adjusted)}</td><td>{verdict(label, band, seed)}</td></tr>"
            )
        bodies.append("".join(rows))
    told = table(["run", "log-SNR", "gain, nats", "p, corrected", "in words"], *bodies)
    return told if len(bodies) <= FEW else _gains_overview(comparison, k) + folded("In words, with p", told)


def _gains_overview(comparison: Comparison, k: int) -> str:
    rows = []
    for i, (label, bands) in enumerate(comparison.gains[k].bands.items(), start=1):
        seed = label in comparison.other_seeds
        cells = [
            f'<td class="{mark(b, seed)}">{plus_minus(b.gain, b.half_width)}</td>' for b in [bands[-1], *bands[:-1]]
        ]
        rows.append(f"<tr><td>{named(label, i)}</td>{''.join(cells)}</tr>")
    bands = next(iter(comparison.gains[k].bands.values()))
    return table(["gain, nats", *(band.name for band in [bands[-1], *bands[:-1]])], "".join(rows))


def _bounds_section(comparison: Comparison) -> str:
    return section(
        "Held-out bound over training",
        "Bands are 95 % over images, and go up and down together: where they overlap, the paired figures still tell "
        f"runs apart. Dashed: where {escape(comparison.first.label)} ended.",
        drawn(bounds_chart(comparison.bounds)),
    )


def training_section(comparison: Comparison) -> str:
    if len(comparison.bounds.get(comparison.first.label, ([],))[0]) < 2:
        return ""
    first, rows = comparison.steps[comparison.first.label], []
    for i, run in enumerate(comparison.runs):
        (steps, bound), reach = comparison.bounds[run.label], comparison.steps[run.label]
        needed, ratio, limits = "not reached", "", ""
        if math.isfinite(reach.steps):
            needed, ratio = f"{reach.steps:,.0f}", f"{reach.steps / first.steps:.2f} ×" if first.steps else ""
            upper = f"{reach.upper:,.0f}" if math.isfinite(reach.upper) else "not yet sure"
            limits = f"{reach.lower:,.0f} … {upper}" if reach.lower < reach.steps or run is not comparison.first else ""
        elif math.isfinite(reach.lower):
            limits = f"{reach.lower:,.0f} at the earliest"
        last = one_decimal(bound.value[-1])
        rows.append(cells_of([named(run.label, i), last, f"{steps[-1]:,}", f"<b>{needed}</b>", ratio, limits]))
    head = ["run", "last bound, nats", "at step", "steps needed", "ratio", "95 %"]
    return section(
        "Training steps to the same quality",
        f"Steps until the bound at which {escape(comparison.first.label)} ended was first reached, on a line between "
        "probes; the interval is where the paired difference from that bound could still have been 0.",
        table(head, "".join(rows)),
    )


def first_of(moment: Moment) -> ProbeRecord:
    """Return the first run's record."""
    return next(iter(moment.records.values()))


def named(label: str, i: int) -> str:
    """Return the label of the ``i``-th run beside its color."""
    return f'<i class="swatch" style="background:{class_color(i)}"></i>{escape(label)}'
