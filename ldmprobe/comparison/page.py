"""The page of ``ldmprobe compare``: the verdict in words, then the curves that it rests on, in the report's look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

import numpy as np

from ldmprobe.comparison.configuration import configuration_differences
from ldmprobe.comparison.findings import Comparison
from ldmprobe.comparison.paired import FEW, first_of, gains_section, named, training_section
from ldmprobe.comparison.words import cells_of, listed, one_decimal, sorted_out, table, verdict
from ldmprobe.io.record import ProbeRecord
from ldmprobe.probing.denoising_record import PROBE
from ldmprobe.tracking.charts.chart import cut_off
from ldmprobe.tracking.charts.runs import runs_charts
from ldmprobe.tracking.charts.svg import drawn_by_choice
from ldmprobe.tracking.comparable import Moment
from ldmprobe.tracking.page import folded, guarded, page, pairs, samples_over_training, section
from ldmprobe.tracking.thumbnails import is_stacked, sample_uris

_FACTS = (  # of a record's provenance
    *("weights", "autoencoder", "latent_shape", "factor", "feature_network", "num_images", "num_draws"),
    *("num_samples", "sampler", "num_steps", "prediction_type"),
)


def comparison_html(comparison: Comparison) -> str:
    """The page as text."""
    sections = "".join(
        guarded(heading, draw, comparison)
        for heading, draw in (
            ("Who is better, and at which noise levels", gains_section),
            ("Training steps to the same quality", training_section),
            ("Samples", _images_sections),
            ("In numbers", _scalars_section),
            ("Curves", _curves_sections),
            ("What was compared", _provenance_section),
        )
    )
    title = f"{comparison.first.label} against {listed([run.label for run in comparison.runs[1:]])}"
    header = guarded("Comparison", _header, comparison)
    css = (files("ldmprobe.comparison") / "compare.css").read_text(encoding="utf-8")
    return page(title, header, sections, css)


# --- sections --------------------------------------------------------------------------------------------------------


def _header(comparison: Comparison) -> str:
    cards = []
    for i, run in enumerate(comparison.runs):
        records = next(iter(run.records.values()))
        value, unit = f"step {records[-1].step:,}", "last probe"
        if run.label in comparison.bounds:
            value, unit = one_decimal(comparison.bounds[run.label][1].value[-1]), f"nats at step {records[-1].step:,}"
        cards.append(f"<div><span>{named(run.label, i)}</span><strong>{value}</strong> <em>{unit}</em></div>")
    return (
        f"<h1>{escape(comparison.first.label)} against {escape(listed([run.label for run in comparison.runs[1:]]))} "
        f'<small>ldmprobe comparison</small></h1><p class="summary">{_summary(comparison)}</p>'
        f'<div class="numbers">{"".join(cards)}</div>'
    )


def _summary(comparison: Comparison) -> str:
    if not comparison.gains:
        return _unpaired(comparison)
    totals = {label: bands[-1] for label, bands in comparison.gains[0].bands.items()}
    seeds = comparison.other_seeds
    words = [verdict(label, total, label in seeds) for label, total in totals.items()]
    words = words if len(totals) <= FEW else sorted_out(totals, seeds)
    when = comparison.moments[PROBE][0].description
    if comparison.of_chance:
        return (
            f"<b>One seed against {'another' if len(totals) == 1 else 'others'} of the same configuration: there is no "
            f"winner.</b> What differs is the chance of training. At {escape(when)}, against "
            f"{escape(comparison.first.label)}: {'; '.join(words)}. Two methods that differ by no more than this are "
            "not told apart by one run each. Below are the held-out bounds at each run's last probe."
        )
    return (
        f"At {escape(when)}, against {escape(comparison.first.label)}: <b>{'; '.join(words)}.</b> "
        "Below are the held-out bounds (lower is better) at each run's last probe."
    )


def _unpaired(comparison: Comparison) -> str:
    """Return what is said where there are no paired differences."""
    if PROBE not in comparison.moments:
        return _in_words(comparison) or (
            "Not every run has a denoising probe, so there are no paired differences; the samplers' curves lie over "
            "each other."
        )
    levels, (first, *others) = comparison.common_levels, comparison.skills.items()
    words = []
    for label, skill in others:
        difference = skill - first[1]
        worst = int(np.abs(difference).argmax())
        words.append(
            f"{escape(label)} {difference.mean():+.3f} on average, at most {difference[worst]:+.3f} (at "
            f"{levels[worst]:+.1f})"
        )
    return (
        "The runs' noise levels differ, as those of different processes do, so there are no paired differences: curves "
        f"lie over each other by log-SNR. Skill less that of {escape(first[0])} between log-SNR {levels[0]:+.1f} and "
        f"{levels[-1]:+.1f}, at {escape(comparison.moments[PROBE][0].description)}: <b>{'; '.join(words)}.</b> Bounds "
        "in nats are of each run's own range, and do not compare."
    ).replace("-", "−")


def _in_words(comparison: Comparison) -> str:
    """Return what the probes say of each run in a sentence of their own; "" where none has one."""
    last = [whens[-1].records for whens in comparison.moments.values() if first_of(whens[-1]).provenance.get("summary")]
    said = [(label, record.provenance.get("summary", "")) for records in last for label, record in records.items()]
    return "<br>".join(f"<b>{escape(label)}</b>: {escape(str(words))}" for label, words in said)


def _images_sections(comparison: Comparison) -> str:
    return "".join(
        _images_section(comparison, whens[::-1], name)
        for whens in comparison.moments.values()
        for name in first_of(whens[-1]).images
    )


def _images_section(comparison: Comparison, whens: Sequence[Moment], name: str) -> str:
    whens = [when for when in whens if all(record.images.get(name) for record in when.records.values())]
    if not whens:
        return ""
    shown = sample_uris([record for when in whens for record in when.records.values()], name)
    uris = iter([shown[k : k + len(comparison.runs)] for k in range(0, len(shown), len(comparison.runs))])
    records = list(whens[0].records.values())
    text = "Each run's last probe."
    if "sampler" in records[0].fingerprints:
        labels = [record.provenance.get("sample_labels") for record in records]
        same = "noise and class" if labels[0] and all(label == labels[0] for label in labels) else "noise"
        text += f" The same place in each grid started from the same {same}."
    else:
        text += f" {escape(records[0].metric(name).meaning)}"
    grids = [_grids(when, next(uris), is_stacked(records[0].images[name])) for when in whens]
    earlier = (folded(f"At {when.description}", grid) for when, grid in zip(whens[1:], grids[1:], strict=True))
    return section(name.replace("_", " ").capitalize(), text, "".join([grids[0], *earlier]))


def _grids(moment: Moment, uris: Sequence[Sequence[str]], stacked: bool) -> str:
    grids = []
    for i, (label, record) in enumerate(moment.records.items()):
        pictures = samples_over_training({record.step: uris[i]}, stacked)
        grids.append(f"<div><h3>{named(label, i)}<em>step {record.step:,}</em></h3>{pictures}</div>")
    return f'<div class="side">{"".join(grids)}</div>'


def _scalars_section(comparison: Comparison) -> str:
    """Return the headline scalars of the runs, a row for each of their moments, and what the probes say in words."""
    rows, said = [], []
    for whens in comparison.moments.values():
        record = first_of(whens[0])
        for name in dict.fromkeys(name for each in whens[0].records.values() for name in each.scalars):
            metric = record.metric(name)
            if metric.shown == "headline" and metric.good != "ideal" and "/" not in name:
                said += [f"<b>{escape(metric.title)}</b>: {escape(metric.meaning)}"] if metric.meaning else []
                for when in whens:
                    values = [_scalar(when.records[run.label], name) for run in comparison.runs]
                    rows.append(cells_of([escape(metric.title), escape(when.description), *values]))
    numbers = table(["", "", *(named(run.label, i) for i, run in enumerate(comparison.runs))], "".join(rows))
    words = "".join(
        table(
            ["run", f"in words, {escape(whens[0].description)}"],
            "".join(
                cells_of([named(run.label, i), escape(str(whens[0].records[run.label].provenance.get("summary", "")))])
                for i, run in enumerate(comparison.runs)
            ),
        )
        for whens in comparison.moments.values()
        if first_of(whens[0]).provenance.get("summary")
    )
    return section("In numbers", " ".join(said), (numbers if rows else "") + words) if rows or words else ""


def _curves_sections(comparison: Comparison) -> str:
    """Return a section for each headline curve that all runs have, in the order in which their probes declare them."""
    parts = []
    for whens in comparison.moments.values():
        record = first_of(whens[0])
        every = [each for when in whens for each in when.records.values()]
        for name in record.curves:
            metric = record.metric(name)
            if metric.shown == "headline" and all(name in each.curves for each in every):
                shown = {when.description: when.records for when in whens}
                heading = metric.title + (f": {name.rpartition('/')[2]}" if metric.name.endswith("/*") else "")
                charts = runs_charts(shown, name)
                text = f"{_when(whens)} {escape(metric.meaning)} {cut_off(next(iter(charts.values())))}"
                parts.append(section(heading, text, drawn_by_choice(charts)))
    return pairs(parts)


def _provenance_section(comparison: Comparison) -> str:
    runs = comparison.runs
    head = "".join(f"<th>{named(run.label, i)}</th>" for i, run in enumerate(runs))
    facts: dict[str, list[str]] = {"directory": [str(run.directory) for run in runs]}
    for probe in comparison.moments:
        last = [run.records[probe][-1] for run in runs]
        facts[f"{probe}: last record"] = [f"step {record.step:,}, {record.created}" for record in last]
        for key in _FACTS:
            if any(key in record.provenance for record in last):
                facts[f"{probe}: {key}"] = [str(record.provenance.get(key, "")) for record in last]
    differing = configuration_differences([run.directory for run in runs])
    last_of = {probe: [run.records[probe][-1].fingerprints for run in runs] for probe in comparison.moments}
    shared = "; ".join(
        f"{probe} {part} {value}"
        for probe, prints in last_of.items()
        for part, value in prints[0].items()
        if all(each.get(part) == value for each in prints)
    )
    return section(
        "What was compared",
        "Runs are compared only where their probes measured the same real and held-out data with the same codec; in "
        "pairs only where the noise levels are the same, too.",
        _facts("How their configurations differ", head, differing, "Nowhere, in what their `config.yaml` says.")
        + _facts("Provenance", head, facts, "")
        + folded("Fingerprints that all of them share", f"<p>{escape(shared)}</p>"),
    )


# --- pieces ----------------------------------------------------------------------------------------------------------


def _facts(heading: str, head: str, facts: Mapping[str, Sequence[str]], none: str) -> str:
    rows = "".join(
        f"<tr><th>{escape(key[:200])}</th>{''.join(f'<td>{escape(value[:1000])}</td>' for value in values)}</tr>"
        for key, values in facts.items()
    )
    told = f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"<details open><summary>{escape(heading)}</summary>{told if facts else f'<p>{escape(none)}</p>'}</details>"


def _scalar(record: ProbeRecord, name: str) -> str:
    value, spread = record.scalars.get(name, math.nan), record.scalars.get(record.metric(name).spread or "")
    return ("–" if math.isnan(value) else f"{value:.4g}") + (f" ± {spread:.2g}" if spread is not None else "")


def _when(whens: Sequence[Moment]) -> str:
    return "" if len(whens) > 1 else f"At {escape(whens[0].description)}."
