"""The report: one self-contained HTML page from a run directory.

It is a loop over the probes of the run and over their metrics, which the records themselves declare: headlines as
charts, details folded away below them. Records and configuration may be a stranger's (see ``tracking.page``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_write
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.probing.denoising_record import PROBE
from ldmprobe.probing.judge import judge
from ldmprobe.probing.memorization_record import PROBE as MEMORIZATION
from ldmprobe.probing.reconstruction import PROBE as FIRST_STAGE
from ldmprobe.tracking.charts.chart import cut_off
from ldmprobe.tracking.charts.curves import Beside, curves_chart, family_chart, scalar_chart
from ldmprobe.tracking.charts.heatmap import COLUMNS, heatmap_chart
from ldmprobe.tracking.charts.scatter import FRAMES, scatter_chart
from ldmprobe.tracking.charts.svg import drawn, drawn_by_choice, drawn_over_training
from ldmprobe.tracking.comparable import comparable
from ldmprobe.tracking.glossary import with_terms
from ldmprobe.tracking.history import comparable_series, steps_of, thinned
from ldmprobe.tracking.page import folded, guarded, page, pairs, samples_over_training, section, slider_over_training
from ldmprobe.tracking.report_links import address_of, config_text_of, links_html
from ldmprobe.tracking.report_words import fact, left_out, meaning, number, prompted, sentence, some_of
from ldmprobe.tracking.run_verdict import judged_records
from ldmprobe.tracking.spectrum import Range, bands_html, noised_html, on_axis, range_of
from ldmprobe.tracking.thumbnails import is_stacked, sample_uris
from ldmprobe.tracking.verdict_html import confidence_html, headline_html

_TOLD_ELSEWHERE = {"summary", "remarks", "notes", "caveats", "sample_labels"}  # of a record's provenance
_MAP, _SPECTRUM = "Noise level × training step", "By noise level"


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the records in ``run_dir/probes`` to ``out`` (default: ``run_dir/report.html``).

    Raises:
        ConfigurationError: there are no records, or ``out`` cannot be written.
    """
    run_dir = Path(run_dir)
    store = RecordStore(run_dir)
    series = comparable_series(store)
    records = [record for each in series.values() for record in each.thinned(COLUMNS).numbers()]
    if not records:
        raise store.no_records
    pictured = {probe: each.thinned(FRAMES) for probe, each in series.items()}
    counts = {probe: len(each) for probe, each in series.items()}
    path = Path(out) if out is not None else run_dir / "report.html"
    told = config_text_of(run_dir), run_dir.resolve().name
    html = report_html(records, *told, pictured, counts, judged_records(run_dir), address_of(run_dir))
    try:
        with atomic_write(path) as file:
            file.write(html.encode())
    except OSError as error:
        raise ConfigurationError(f"The report cannot be written to {path}: {error.strerror}.") from error
    return path


def report_html(
    records: Sequence[ProbeRecord],
    config_text: str | None,
    title: str,
    pictured: Mapping[str, Sequence[ProbeRecord]] | None = None,
    counts: Mapping[str, int] | None = None,
    judged: Sequence[ProbeRecord] | None = None,
    address: str | None = None,
) -> str:
    """Return the page as text, of a size that does not grow with the number of records.

    Args:
        pictured: by probe, records with samples and scatters, where ``records`` come without; gone through one at a
            time.
        counts: how many records there are of each probe, where ``records`` are some of them.
        judged: what the verdict is made of, where ``records`` come without the errors of their draws.
        address: where the run is in Weights & Biases.
    """
    probes = _by_probe(records)
    counts = {probe: len(each) for probe, each in probes.items()} | dict(counts or {})
    if pictured is None:
        pictured = {
            probe: thinned([record for record in each if record.images or record.scatters], FRAMES)
            for probe, each in probes.items()
        }
    shown = {probe: thinned(each, COLUMNS) for probe, each in probes.items()}
    latest = {name: each[-1] for each in shown.values() for name in each[-1].curves}
    moving = [each for each in pictured.values() if each and (each[-1].images or each[-1].scatters)]
    steps = sorted({step for each in moving or pictured.values() for step in steps_of(each)})
    judged = records if judged is None else judged
    images, scatters = (
        [guarded("Pictures", _picture_sections, pictured.get(probe, []), counts[probe], draw) for probe in shown]
        for draw in (_images_section, _scatter_section)
    )
    parts = [
        slider_over_training(steps),
        *images,
        guarded(_SPECTRUM, _spectrum_section, shown, pictured, judged, latest),
        guarded("Numbers", _numbers, shown, counts),
        *scatters,
        *(_metric_sections(each) for each in shown.values()),
        guarded("How it was measured", _provenance_section, records, config_text, counts),
    ]
    heading = f"<h1>{escape(title)} <small>ldmprobe report</small></h1>{links_html(config_text, address)}"
    header = heading + guarded("Verdict", _verdict, judged, shown)
    return page(title, header, "".join(parts))


def _by_probe(records: Sequence[ProbeRecord]) -> dict[str, list[ProbeRecord]]:
    """Return the comparable records of each probe: first those that come to a verdict in words, then those with most to
    show.
    """
    names = dict.fromkeys(record.probe for record in records)
    found = [comparable([record for record in records if record.probe == probe]) for probe in names]
    found.sort(key=lambda each: ("summary" not in each[-1].provenance, -len(each[-1].curves)))
    return {each[-1].probe: each for each in found}


# --- sections --------------------------------------------------------------------------------------------------------


def _verdict(judged: Sequence[ProbeRecord], probes: Mapping[str, Sequence[ProbeRecord]]) -> str:
    """Return the verdict, and what single probes come to in words; these alone of an autoencoder, which has none."""
    remarks = [
        str(records[-1].provenance.get(key, "")) for records in probes.values() for key in ("summary", "remarks")
    ]
    said = " ".join(escape(sentence(remark)) for remark in remarks if remark)
    if FIRST_STAGE in probes and not any(record.probe == PROBE for record in judged):
        return f'<p class="summary">{said}</p>'
    found = folded("What the last probes found", f"<p>{said}</p>") if said else ""
    verdict = judge(judged)
    return headline_html(verdict) + confidence_html(verdict) + found


def _numbers(probes: Mapping[str, Sequence[ProbeRecord]], counts: Mapping[str, int]) -> str:
    cards = [
        ("Training steps", f"{max(records[-1].step for records in probes.values()):,}", ""),
        ("Probes on record", f"{sum(counts[probe] for probe in probes):,}", ""),
    ]
    for records in probes.values():
        for name, value in records[-1].scalars.items():
            metric = records[-1].metric(name)
            if metric.shown != "headline" or metric.good == "ideal" or "/" in name or not np.isfinite(value):
                continue
            spread, first = records[-1].scalars.get(metric.spread or ""), records[0].scalars.get(name, value)
            more = [f"± {spread:.3g}"] if spread is not None else []
            more += [metric.unit] if metric.unit else []
            more += [f"from {number(first)}"] if first != value else []
            cards.append((metric.title, number(value), " ".join(more)))
    numbers = "".join(
        f"<div><span>{escape(a)}</span><strong>{escape(b)}</strong> <em>{escape(c)}</em></div>" for a, b, c in cards
    )
    return f'<div class="numbers">{numbers}</div>'


def _picture_sections(pictured: Sequence[ProbeRecord], count: int, draw: Callable[..., str]) -> str:
    """Return the sections of a probe's images or scatters, whichever ``draw`` draws; the page's slider moves them."""
    if not pictured:
        return ""
    last = pictured[-1]
    scatters = [name for name in last.scatters if not name.endswith("_real")]
    names = list(last.images) if draw is _images_section else scatters
    return "".join(guarded(last.metric(name).title, draw, pictured, last, name, count) for name in names)


def _images_section(pictured: Sequence[ProbeRecord], last: ProbeRecord, name: str, count: int) -> str:
    uris = sample_uris(pictured, name)
    frames = {step: frame for step, frame in zip(steps_of(pictured), uris, strict=True) if frame}
    text = meaning(last, name) + some_of(len(frames), count) + prompted(last)
    return section(last.metric(name).title, text, samples_over_training(frames, is_stacked(last.images[name])))


def _scatter_section(pictured: Sequence[ProbeRecord], last: ProbeRecord, name: str, count: int) -> str:
    charts = {record.step: scatter_chart(record, name) for record in pictured if record.scatters.get(name)}
    text = meaning(last, name) + some_of(len(charts), count)
    return section(last.metric(name).title, text, drawn_over_training(charts))


def _spectrum_section(
    probes: Mapping[str, Sequence[ProbeRecord]],
    pictured: Mapping[str, Sequence[ProbeRecord]],
    judged: Sequence[ProbeRecord],
    latest: Beside,
) -> str:
    """Return all that is known by noise level above one axis; "" where nothing is."""
    names = {
        probe: [name for name in _curves(records[-1]) if _by_level(records[-1], name)]
        for probe, records in probes.items()
    }
    lasts = [records[-1] for records in probes.values()]
    reach = range_of(lasts, [name for each in names.values() for name in each])
    if reach is None:
        return ""
    images = [png for each in pictured.values() if each for pngs in each[-1].images.values() for png in pngs]
    rows = "".join(
        guarded(records[-1].metric(name).title, _row, records, name, latest, reach)
        for probe, records in probes.items()
        for name in names[probe]
    )
    of_levels = [each for each in judged if each.probe in (PROBE, MEMORIZATION)]
    above = noised_html(images, reach) + bands_html(sorted(of_levels, key=lambda each: each.step), reach)
    return section(_SPECTRUM, "", f'<div class="spectrum">{above}{rows}</div>')


def _row(records: Sequence[ProbeRecord], name: str, latest: Beside, reach: Range) -> str:
    """Return a chart of the spectrum."""
    last = records[-1]
    drawn_chart = on_axis(curves_chart(records, name, latest), reach)
    text = f"{meaning(last, name)} {cut_off(drawn_chart)}"
    return f"<article><h2>{escape(last.metric(name).title)}</h2><p>{with_terms(text)}</p>{drawn(drawn_chart)}</article>"


def _curves(record: ProbeRecord) -> list[str]:
    """Return the names of a record's curves, and of families of them, in the order in which it declares them."""
    declared = {metric.name: k for k, metric in enumerate(record.metrics)}
    families = [f"{name.rpartition('/')[0]}/*" for name in record.curves]
    found = [
        name for name in (*record.curves, *families) if name in declared or not record.metric(name).name.endswith("/*")
    ]
    return sorted(dict.fromkeys(found), key=lambda name: declared.get(name, len(declared)))


def _by_level(record: ProbeRecord, name: str) -> bool:
    """Return whether a headline has a place in the spectrum."""
    metric = record.metric(name)
    return name in record.curves and metric.shown == "headline" and not metric.along


def _metric_sections(records: Sequence[ProbeRecord]) -> str:
    """Return a section for each metric of a probe that is not in the spectrum."""
    last = records[-1]
    names = _curves(last)
    mapped = [name for name in names if _by_level(last, name) and last.metric(name).has_heatmap]
    names = [name for name in names if not _by_level(last, name)]
    if len(records) > 1:
        names += [name for name in last.scalars if last.metric(name).shown == "headline" and "/" not in name]
    sections: dict[str, list[str]] = {"headline": [], "detail": [], "record": []}
    for name in names:
        metric = last.metric(name)
        sections[metric.shown].append(guarded(metric.title, _metric_section, records, name))
    if mapped and len(records) > 1:
        sections["headline"].append(guarded(_MAP, _heatmap_section, records, mapped))
    return pairs(sections["headline"]) + folded(f"Details of the {last.probe} probe", pairs(sections["detail"]))


def _metric_section(records: Sequence[ProbeRecord], name: str) -> str:
    last = records[-1]
    if name in last.scalars:
        chart = scalar_chart(records, name)
    else:
        chart = curves_chart(records, name) if name in last.curves else family_chart(last, name)
    return section(last.metric(name).title, f"{meaning(last, name)} {cut_off(chart)}", drawn(chart))


def _heatmap_section(records: Sequence[ProbeRecord], names: Sequence[str]) -> str:
    charts = {records[-1].metric(name).title: heatmap_chart(records, name) for name in names}
    text = (
        "How each noise level develops. White is where it should be, or where a linear denoiser is; a horizontal band "
        "that keeps its color while the rest fades is a level that training leaves behind."
    )
    return section(_MAP, text, drawn_by_choice(charts), wide=True)


def _provenance_section(records: Sequence[ProbeRecord], config_text: str | None, counts: Mapping[str, int]) -> str:
    rows = []
    for probe in dict.fromkeys(record.probe for record in records):
        last = [record for record in records if record.probe == probe][-1]
        facts = {"last record": f"step {last.step:,}, {last.created}", **last.provenance, **last.fingerprints}
        listed = "; ".join(
            f"{escape(str(key)[:200])}: {escape(fact(value)[:4000])}"
            for key, value in facts.items()
            if key not in _TOLD_ELSEWHERE
        )
        rows.append(f"<tr><th>{escape(probe)}</th><td>{listed}</td></tr>")
    config = (
        "" if config_text is None else folded("Configuration", f"<pre id=configuration>{escape(config_text)}</pre>")
    )
    return section(
        "How it was measured",
        "Records are compared only where their fingerprints (grid, reference, sampler, held-out data) agree."
        + left_out(counts),
        f"<details open><summary>Provenance</summary><table>{''.join(rows)}</table></details>{config}",
    )
