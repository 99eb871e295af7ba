"""The report: one self-contained HTML page from a run directory.

It is a loop over the probes of the run and over their metrics, which the records themselves declare: headlines as
charts, details folded away below them. Records and configuration may be a stranger's (see ``tracking.page``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_write
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.probing.judge import judge
from ldmprobe.tracking.charts.chart import cut_off
from ldmprobe.tracking.charts.curves import CURVES, Beside, axes_of, curves_chart, family_chart, scalar_chart
from ldmprobe.tracking.charts.heatmap import COLUMNS, heatmap_chart
from ldmprobe.tracking.charts.interactive import figure_across, figure_of_choices, figure_over_training
from ldmprobe.tracking.charts.scatter import FRAMES, POINTS, scatter_chart
from ldmprobe.tracking.comparable import comparable
from ldmprobe.tracking.history import comparable_series, steps_of, thinned
from ldmprobe.tracking.page import chart, folded, guarded, page, pairs, samples_with_slider, section
from ldmprobe.tracking.run_verdict import judged_records
from ldmprobe.tracking.thumbnails import sample_uris
from ldmprobe.tracking.verdict_html import verdict_html

_TOLD_ELSEWHERE = {"summary", "remarks", "notes", "caveats", "sample_labels"}  # of a record's provenance
_PROMPTS_SHOWN, _MAP = 20, "Noise level × training step"


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
    html = report_html(
        records, _config_text(run_dir), run_dir.resolve().name, pictured, counts, judged_records(run_dir)
    )
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
) -> str:
    """Return the page as text, of a size that does not grow with the number of records.

    Args:
        pictured: by probe, records with samples and scatters, where ``records`` come without; gone through one at a
            time.
        counts: how many records there are of each probe, where ``records`` are some of them.
        judged: what the verdict is made of, where ``records`` come without the errors of their draws.
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
    parts = [guarded("Pictures", _picture_sections, pictured.get(probe, []), counts[probe]) for probe in shown]
    parts += [_metric_sections(each, latest) for each in shown.values()]
    parts.append(guarded("How it was measured", _provenance_section, records, config_text, counts))
    judged = records if judged is None else judged
    header = f"<h1>{escape(title)} <small>ldmprobe report</small></h1>" + guarded("Verdict", _verdict, judged, shown)
    header += guarded("Numbers", _numbers, shown, counts)
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
    """Return the verdict, and what single probes come to in words."""
    remarks = [
        str(records[-1].provenance.get(key, "")) for records in probes.values() for key in ("summary", "remarks")
    ]
    said = " ".join(escape(_sentence(remark)) for remark in remarks if remark)
    found = folded("What the last probes found", f"<p>{said}</p>") if said else ""
    return verdict_html(judge(judged)) + found


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
            more += [f"from {_number(first)}"] if first != value else []
            cards.append((metric.title, _number(value), " ".join(more)))
    numbers = "".join(
        f"<div><span>{escape(a)}</span><strong>{escape(b)}</strong> <em>{escape(c)}</em></div>" for a, b, c in cards
    )
    return f'<div class="numbers">{numbers}</div>'


def _picture_sections(pictured: Sequence[ProbeRecord], count: int) -> str:
    """Return the sections of a probe's images and scatters, each with a slider over training."""
    if not pictured:
        return ""
    last = pictured[-1]
    drawn = [(name, _images_section) for name in last.images]
    drawn += [(name, _scatter_section) for name in last.scatters if not name.endswith("_real")]
    return "".join(guarded(last.metric(name).title, draw, pictured, last, name, count) for name, draw in drawn)


def _images_section(pictured: Sequence[ProbeRecord], last: ProbeRecord, name: str, count: int) -> str:
    uris = sample_uris(pictured, name)
    frames = {step: frame for step, frame in zip(steps_of(pictured), uris, strict=True) if frame}
    text = _meaning(last, name) + _some_of(len(frames), count) + _prompted(last)
    return section(last.metric(name).title, text, samples_with_slider(frames))


def _scatter_section(pictured: Sequence[ProbeRecord], last: ProbeRecord, name: str, count: int) -> str:
    charts = {record.step: scatter_chart(record, name) for record in pictured if record.scatters.get(name)}
    text = _meaning(last, name) + _some_of(len(charts), count)
    return section(last.metric(name).title, text, chart(figure_over_training(charts)))


def _metric_sections(records: Sequence[ProbeRecord], latest: Beside) -> str:
    """Return a section for each metric of a probe, in the order in which it declares them."""
    last = records[-1]
    declared = {metric.name: k for k, metric in enumerate(last.metrics)}
    families = [f"{name.rpartition('/')[0]}/*" for name in last.curves]
    curves = [
        name for name in (*last.curves, *families) if name in declared or not last.metric(name).name.endswith("/*")
    ]
    names = sorted(dict.fromkeys(curves), key=lambda name: declared.get(name, len(declared)))
    if len(records) > 1:
        names += [name for name in last.scalars if last.metric(name).shown == "headline" and "/" not in name]
    drawn: dict[str, list[str]] = {"headline": [], "detail": [], "record": []}
    for name in names:
        metric = last.metric(name)
        drawn[metric.shown].append(guarded(metric.title, _metric_section, records, name, latest))
    mapped = [
        name
        for name in names
        if name in last.curves and last.metric(name).shown == "headline" and last.metric(name).has_heatmap
    ]
    if mapped and len(records) > 1:
        drawn["headline"].append(guarded(_MAP, _heatmap_section, records, mapped))
    return pairs(drawn["headline"]) + folded(f"Details of the {last.probe} probe", pairs(drawn["detail"]))


def _metric_section(records: Sequence[ProbeRecord], name: str, latest: Beside) -> str:
    last = records[-1]
    if name in last.scalars:
        charts = {"": scalar_chart(records, name)}
    elif name in last.curves:
        charts = {axis.name: curves_chart(records, name, latest, axis) for axis in axes_of(last, name)}
    else:
        charts = {axis.name: family_chart(last, name, axis) for axis in axes_of(last, name)}
    text = f"{_meaning(last, name)} {cut_off(next(iter(charts.values())))}"
    return section(last.metric(name).title, text, chart(figure_across(charts)))


def _heatmap_section(records: Sequence[ProbeRecord], names: Sequence[str]) -> str:
    charts = {records[-1].metric(name).title: heatmap_chart(records, name) for name in names}
    text = (
        "How each noise level develops. White is where it should be, or where a linear denoiser is; a horizontal band "
        "that keeps its color while the rest fades is a level that training leaves behind."
    )
    return section(_MAP, text, chart(figure_of_choices(charts)), wide=True)


def _provenance_section(records: Sequence[ProbeRecord], config_text: str | None, counts: Mapping[str, int]) -> str:
    rows = []
    for probe in dict.fromkeys(record.probe for record in records):
        last = [record for record in records if record.probe == probe][-1]
        facts = {"last record": f"step {last.step:,}, {last.created}", **last.provenance, **last.fingerprints}
        listed = "; ".join(
            f"{escape(str(key)[:200])}: {escape(_fact(value)[:4000])}"
            for key, value in facts.items()
            if key not in _TOLD_ELSEWHERE
        )
        rows.append(f"<tr><th>{escape(probe)}</th><td>{listed}</td></tr>")
    config = "" if config_text is None else folded("Configuration", f"<pre>{escape(config_text)}</pre>")
    return section(
        "How it was measured",
        "Records are compared only where their fingerprints (grid, reference, sampler, held-out data) agree."
        + _left_out(counts),
        f"<details open><summary>Provenance</summary><table>{''.join(rows)}</table></details>{config}",
    )


# --- pieces ----------------------------------------------------------------------------------------------------------


def _meaning(record: ProbeRecord, name: str) -> str:
    """Return what a metric means, what this record adds to it, and what moves its samples off the data whatever the
    model.
    """
    note = record.provenance.get("notes", {}).get(name)
    text = escape(record.metric(name).meaning) + (f" <b>{escape(str(note))}</b>" if note else "")
    for caveat in record.provenance.get("caveats", []):
        text += f" <b>{escape(_sentence(caveat))[:400]}</b>: what parts them from the ideal and from real data is its "
        text += "doing, too."
    return text


def _fact(value: object) -> str:
    """Return a value of a record in as many digits as one reads; the record itself has them all."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_fact(each)}" for key, each in value.items())
    return ", ".join(map(_fact, value)) if isinstance(value, list | tuple) else str(value)


def _sentence(text: object) -> str:
    return str(text)[:1].upper() + str(text)[1:]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _some_of(shown: int, count: int) -> str:
    return f" Shown are {shown} of {count:,} probes, evenly spaced." if shown < count else ""


def _left_out(counts: Mapping[str, int]) -> str:
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


def _prompted(record: ProbeRecord) -> str:
    prompts = record.provenance.get("prompts")
    if not isinstance(prompts, list):
        return ""
    quoted = ", ".join(f"“{escape(str(prompt)[:200])}”" for prompt in prompts[:_PROMPTS_SHOWN])
    return f" Prompts, in turn: {quoted}{' …' if len(prompts) > _PROMPTS_SHOWN else ''}."


def _config_text(run_dir: Path) -> str | None:
    path = run_dir / "config.yaml"
    try:
        if not path.is_file():
            return None
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(1_000_000)
    except OSError:
        return None
