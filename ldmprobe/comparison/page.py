"""The page of ``ldmprobe compare``: the verdict in words, then the curves that it rests on. In the report's look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files

from ldmprobe.comparison.configuration import configuration_differences
from ldmprobe.comparison.findings import Comparison, band_shares
from ldmprobe.comparison.words import listed, mark, one_decimal, plus_minus, probability, sorted_out, verdict
from ldmprobe.tracking.charts import comparison as charts
from ldmprobe.tracking.comparable import Moment
from ldmprobe.tracking.page import chart, guarded, page, section
from ldmprobe.tracking.style import class_colour
from ldmprobe.tracking.thumbnails import sample_uris

_FEW = 4  # runs that are worth a sentence each


def comparison_html(comparison: Comparison) -> str:
    """The page as text."""
    sections = "".join(
        guarded(heading, partial(draw, comparison))
        for heading, draw in (
            ("Who is better, and at which noise levels", _gains_section),
            ("Training steps to the same quality", _training_section),
            ("Samples", _samples_section),
            ("FID and KID", _quality_section),
            ("Noise levels", _levels_section),
            ("Sampling", _sampling_section),
            ("Imbalance", _imbalance_section),
            ("What was compared", _provenance_section),
        )
    )
    title = f"{comparison.first.label} against {listed([run.label for run in comparison.runs[1:]])}"
    header = guarded("Comparison", partial(_header, comparison))
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
        cards.append(f"<div><span>{_named(run.label, i)}</span><strong>{value}</strong> <em>{unit}</em></div>")
    return (
        f"<h1>{escape(comparison.first.label)} against {escape(listed([run.label for run in comparison.runs[1:]]))} "
        f'<small>ldmprobe comparison</small></h1><p class="summary">{_summary(comparison)}</p>'
        f'<div class="numbers">{"".join(cards)}</div>'
    )


def _summary(comparison: Comparison) -> str:
    if not comparison.gains:
        return "Not every run has a denoising probe, so there are no paired differences; the samplers' curves lie over each other."
    totals = {label: bands[-1] for label, bands in comparison.gains[0].bands.items()}
    seeds = comparison.other_seeds
    words = [verdict(label, total, label in seeds) for label, total in totals.items()]
    words = words if len(totals) <= _FEW else sorted_out(totals, seeds)
    when = comparison.moments["denoising"][0].description
    if comparison.of_chance:
        return (
            f"<b>One seed against {'another' if len(totals) == 1 else 'others'} of the same configuration: there is no winner.</b> What differs is "
            f"the chance of training. At {escape(when)}, against {escape(comparison.first.label)}: {'; '.join(words)}. Two methods that differ by "
            "no more than this are not told apart by one run each. Below are the held-out bounds at each run's last probe."
        )
    return (
        f"At {escape(when)}, against {escape(comparison.first.label)}: <b>{'; '.join(words)}.</b> "
        "Below are the held-out bounds (lower is better) at each run's last probe."
    )


def _gains_section(comparison: Comparison) -> str:
    if not comparison.gains:
        return ""
    whens = comparison.moments["denoising"]
    tables = [_gains_table(comparison, k) for k in range(len(whens))]
    name, log_snr = (
        escape(comparison.first.label),
        next(iter(whens[0].records.values())).curves["denoising_mse"].log_snr,
    )
    first = section(
        "What another seed changes, and at which noise levels"
        if comparison.of_chance
        else "Who is better, and at which noise levels",
        f"Gain over <b>{name}</b> in nats of the likelihood bound, at {escape(whens[0].description)}: the difference of squared error on the "
        "same held-out images with the same noise, ± 95 %. p is corrected for all bands and runs of the table, the totals among themselves "
        "(Holm). It speaks of these networks, on images like these: another seed of training may fall out differently, and only several "
        "seeds can tell methods apart.",
        tables[0]
        + "".join(
            f"<details><summary>The same at {escape(when.description)}</summary>{table}</details>"
            for when, table in zip(whens[1:], tables[1:], strict=True)
        ),
    )
    figure = charts.gains_chart(
        log_snr, {w.description: g.levels for w, g in zip(whens, comparison.gains, strict=True)}
    )
    levels = section(
        "The same, level by level",
        f"Paired with {name}: above 0 a run denoises that level better. Bands are 95 % for each level on its own.",
        chart(figure),
    )
    return f'{first}<div class="pair">{levels}{_bounds_section(comparison)}</div>'


def _gains_table(comparison: Comparison, k: int) -> str:
    """A row for each run and band, in words; with many runs that is folded away under a row for each run."""
    bodies = []
    for i, (label, bands) in enumerate(comparison.gains[k].bands.items(), start=1):
        rows, seed = [], label in comparison.other_seeds
        for band in [bands[-1], *bands[:-1]]:
            rows.append(
                f"<tr{' class=total' if band.everywhere else ''}><td>{_named(label, i)}</td>"
                f'<td>{band.name}</td><td class="{mark(band, seed)}">{plus_minus(band.gain, band.half_width)}</td>'
                f"<td>{probability(band.adjusted)}</td><td>{verdict(label, band, seed)}</td></tr>"
            )
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    head = "<tr><th>run</th><th>log-SNR</th><th>gain, nats</th><th>p, corrected</th><th>in words</th></tr>"
    table = f'<div class="scroll"><table class="verdicts"><thead>{head}</thead>{"".join(bodies)}</table></div>'
    if len(bodies) <= _FEW:
        return table
    return f"{_gains_overview(comparison, k)}<details><summary>In words, with p</summary>{table}</details>"


def _gains_overview(comparison: Comparison, k: int) -> str:
    rows = []
    for i, (label, bands) in enumerate(comparison.gains[k].bands.items(), start=1):
        seed = label in comparison.other_seeds
        cells = [
            f'<td class="{mark(b, seed)}">{plus_minus(b.gain, b.half_width)}</td>' for b in [bands[-1], *bands[:-1]]
        ]
        rows.append(f"<tr><td>{_named(label, i)}</td>{''.join(cells)}</tr>")
    bands = next(iter(comparison.gains[k].bands.values()))
    head = "".join(f"<th>{band.name}</th>" for band in [bands[-1], *bands[:-1]])
    return (
        f'<div class="scroll"><table class="verdicts"><thead><tr><th>gain, nats</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _bounds_section(comparison: Comparison) -> str:
    return section(
        "Held-out bound over training",
        "Bands are 95 % over images, and go up and down together: where they overlap, the paired figures still tell runs apart. "
        f"Dotted: where {escape(comparison.first.label)} ended.",
        chart(charts.bounds_chart(comparison.bounds)),
    )


def _training_section(comparison: Comparison) -> str:
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
        rows.append(
            f"<tr><td>{_named(run.label, i)}</td><td>{one_decimal(bound.value[-1])}</td><td>{steps[-1]:,}</td>"
            f"<td><b>{needed}</b></td><td>{ratio}</td><td>{limits}</td></tr>"
        )
    head = (
        "<tr><th>run</th><th>last bound, nats</th><th>at step</th><th>steps needed</th><th>ratio</th><th>95 %</th></tr>"
    )
    return section(
        "Training steps to the same quality",
        f"Steps until the bound at which {escape(comparison.first.label)} ended was first reached, on a line between probes; the interval is "
        "where the paired difference from that bound could still have been 0.",
        f'<div class="scroll"><table class="verdicts"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>',
    )


def _samples_section(comparison: Comparison) -> str:
    whens = comparison.moments.get("ddim", [])[::-1]
    whens = [when for when in whens if all(record.images.get("samples") for record in when.records.values())]
    if not whens:
        return ""
    shown = sample_uris([record for when in whens for record in when.records.values()])
    uris = iter([shown[k : k + len(comparison.runs)] for k in range(0, len(shown), len(comparison.runs))])
    labels = [record.provenance.get("sample_labels") for record in whens[0].records.values()]
    same = "noise and class" if labels[0] and all(label == labels[0] for label in labels) else "noise"
    return section(
        "Samples",
        f"Each run's last probe. The same place in each grid started from the same {same}.",
        _grids(whens[0], next(uris))
        + "".join(
            f"<details><summary>At {escape(w.description)}</summary>{_grids(w, next(uris))}</details>"
            for w in whens[1:]
        ),
    )


def _grids(moment: Moment, uris: Sequence[Sequence[str]]) -> str:
    grids = []
    for i, (label, record) in enumerate(moment.records.items()):
        pictures = "".join(f'<img alt="sample {k}" src="{uri}">' for k, uri in enumerate(uris[i]))
        grids.append(
            f'<div><h3>{_named(label, i)}<em>step {record.step:,}</em></h3><div class="samples">{pictures}</div></div>'
        )
    return f'<div class="side">{"".join(grids)}</div>'


def _quality_section(comparison: Comparison) -> str:
    whens = comparison.moments.get("quality", [])
    if not whens:
        return ""
    rows = []
    for i, run in enumerate(comparison.runs):
        found = [when.records[run.label].scalars for when in whens]
        cells = "".join(f"<td>{s['fid']:.4g}</td><td>{s['kid']:.3g} ± {s['kid_std']:.2g}</td>" for s in found)
        rows.append(f"<tr><td>{_named(run.label, i)}</td>{cells}</tr>")
    head = "".join(f"<th>FID, {(at := escape(when.description))}</th><th>KID, {at}</th>" for when in whens)
    known = next(iter(whens[0].records.values())).provenance
    return section(
        "FID and KID",
        f"Distance of {known['num_samples']:,} decoded samples from {known['num_real']:,} real images in the features of "
        f"{escape(str(known['feature_network']))}; lower is better. ± is the standard deviation over KID's subsets, no interval.",
        f'<div class="scroll"><table class="verdicts"><thead><tr><th>run</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>',
    )


def _levels_section(comparison: Comparison) -> str:
    whens = comparison.moments.get("denoising", [])
    if not whens:
        return ""
    shown = {when.description: when.records for when in whens}
    skill = section(
        "Denoising skill on held-out data",
        f"{_when(whens)} 0 is the best linear denoiser. Bands: 95 %, each run on its own.",
        chart(charts.skills_chart(shown)),
    )
    residual = section(
        "Where loss can still be recovered",
        f"{_when(whens)} R, the share of the error that a linear correction would remove; 0 is calibrated.",
        chart(charts.residuals_chart(shown)),
    )
    nats = section(
        "Gain over a linear denoiser, in nats",
        f"{_when(whens)} What the levels weigh in the likelihood bound: skill and R matter where this does.",
        chart(charts.level_nats_chart(shown)),
    )
    return f'<div class="pair">{skill}{residual}</div>{nats}'


def _sampling_section(comparison: Comparison) -> str:
    whens = comparison.moments.get("ddim", [])
    kl = "KL before and after each denoiser pass", "Only the distance from the dashed ideal counts."
    gap = "Samples against real latents, level by level", "A rise says where samples leave the data."
    parts = []
    for metric, draw, (heading, text) in (
        ("step_kl", charts.step_kls_chart, kl),
        ("marginal_gap", charts.gaps_chart, gap),
    ):
        if whens and all(metric in record.curves for when in whens for record in when.records.values()):
            shown = {when.description: when.records for when in whens}
            parts.append(section(heading, f"{_when(whens)} {text}", chart(draw(shown))))
    return f'<div class="pair">{"".join(parts)}</div>' if len(parts) > 1 else "".join(parts)


def _imbalance_section(comparison: Comparison) -> str:
    whens = comparison.moments.get("denoising", [])
    if not whens:
        return ""
    rows = []
    for i, run in enumerate(comparison.runs):
        records = [when.records[run.label] for when in whens]
        ginis = "".join(f"<td>{record.scalars['imbalance_gini']:.2f}</td>" for record in records)
        rows.append(
            f"<tr><td>{_named(run.label, i)}</td>{ginis}<td>{escape(str(records[0].provenance['summary']))}</td></tr>"
        )
    names = [band.name for band, _ in band_shares(next(iter(whens[0].records.values())))]
    shares = {
        when.description: {label: [share for _, share in band_shares(record)] for label, record in when.records.items()}
        for when in whens
    }
    head = "".join(f"<th>Gini, {escape(when.description)}</th>" for when in whens)
    return section(
        "Imbalance",
        "How the recoverable excess is spread over bands of log-SNR. Gini is 0 where every band has as much left to recover, towards 1 where all "
        "of it is in one. Shares say nothing of how much there is: that is R, above.",
        f'<div class="scroll"><table class="verdicts"><thead><tr><th>run</th>{head}<th>in words, {escape(whens[0].description)}</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{chart(charts.shares_chart(names, shares))}",
    )


def _provenance_section(comparison: Comparison) -> str:
    runs = comparison.runs
    head = "".join(f"<th>{_named(run.label, i)}</th>" for i, run in enumerate(runs))
    facts: dict[str, list[str]] = {"directory": [str(run.directory) for run in runs]}
    for probe in comparison.moments:
        last = [run.records[probe][-1] for run in runs]
        facts[f"{probe}: last record"] = [f"step {record.step:,}, {record.created}" for record in last]
        for key in ("weights", "num_images", "num_draws", "num_samples", "num_steps", "prediction_type"):
            if any(key in record.provenance for record in last):
                facts[f"{probe}: {key}"] = [str(record.provenance.get(key, "")) for record in last]
    differing = configuration_differences([run.directory for run in runs])
    shared = "; ".join(
        f"{probe} {part} {value}"
        for probe in comparison.moments
        for part, value in runs[0].records[probe][-1].fingerprints.items()
    )
    return section(
        "What was compared",
        "Runs are compared only where the fingerprints of their probes (grid, reference, held-out data, codec, sampler) agree.",
        _facts("How their configurations differ", head, differing, "Nowhere, in what their `config.yaml` says.")
        + _facts("Provenance", head, facts, "")
        + f"<details><summary>Fingerprints that all of them share</summary><p>{escape(shared)}</p></details>",
    )


# --- pieces ----------------------------------------------------------------------------------------------------------


def _facts(heading: str, head: str, facts: Mapping[str, Sequence[str]], none: str) -> str:
    rows = "".join(
        f"<tr><th>{escape(key[:200])}</th>{''.join(f'<td>{escape(value[:1000])}</td>' for value in values)}</tr>"
        for key, values in facts.items()
    )
    table = f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"<details open><summary>{escape(heading)}</summary>{table if facts else f'<p>{escape(none)}</p>'}</details>"


def _when(whens: Sequence[Moment]) -> str:
    return "" if len(whens) > 1 else f"At {escape(whens[0].description)}."


def _named(label: str, i: int) -> str:
    return f'<i class="swatch" style="background:{class_colour(i)}"></i>{escape(label)}'
