"""The page of a run, made of its records."""

import dataclasses
import json
import re
from html import escape, unescape
from pathlib import Path

import numpy as np
import pytest

from ldmprobe import Curve, Metric, ProbeRecord, RecordStore, write_report
from ldmprobe.cli import main
from ldmprobe.io.record_file import Part, read_record
from ldmprobe.probing.judge import judge
from ldmprobe.tracking.charts.chart import Chart, Line, Panel, cut_off
from ldmprobe.tracking.charts.scatter import FRAMES
from ldmprobe.tracking.glossary import with_terms
from ldmprobe.tracking.history import thinned
from ldmprobe.tracking.report import report_html
from ldmprobe.tracking.report_links import address_of, config_text_of, links_html
from tests.helpers import refuses

ROOT = Path(__file__).resolve().parents[2]


def test_page_has_a_section_for_every_metric_and_loads_nothing(records, run_dir, tmp_path):
    html = write_report(run_dir, tmp_path / "page.html").read_text()
    headings = set(re.findall("<h2>(.*?)</h2>", html))
    for *_, last in records.values():
        drawn = [last.metric(name) for name in (*last.curves, *last.images, *last.scatters)]
        assert {escape(metric.title) for metric in drawn if metric.shown != "record"} - {"pca_real"} <= headings
        assert all(metric.meaning or metric.unit for metric in drawn if metric.shown == "headline")
    assert "<section class=wide><h2>Noise level × training step</h2>" in html  # its buttons need the room
    assert {"Noise level × training step", "How it was measured", "FID over training", "Held-out bound"} <= headings
    assert not re.search(r"<(script|img|iframe)[^>]+src=[\"'](?!data:)", html)
    assert "<link" not in html.replace("<link>", "")
    assert "could not be drawn" not in html.lower()


def test_provenance_is_told_once_and_in_four_digits(records):
    last = records["denoising"][-1]
    known = {"summary": "Falls short here.", "weight": 1 / 3, "parts": {"a": [2 / 3, 7]}}
    html = report_html([dataclasses.replace(last, provenance={**last.provenance, **known})], None, "run")
    assert html.count("Falls short here.") == 1
    assert "weight: 0.3333; parts: a 0.6667, 7;" in html


def test_what_lies_outside_a_frame_is_told(records):
    last = records["denoising"][-1]
    curve = last.curves["denoising_skill"]
    value = curve.value.copy()
    value[[0, 1]] = 4321.0, -1234.0
    far = dataclasses.replace(
        last, step=2, curves={**last.curves, "denoising_skill": dataclasses.replace(curve, value=value)}
    )
    html = report_html([far, last], None, "run")
    assert re.search(r"\d+ values, from −1\.23e\+03 to 4\.32e\+03, lie outside the frame\.", html) is not None
    within = Line(np.arange(3.0), np.array([0.0, np.nan, 1.0]), "black")
    assert cut_off(Chart([Panel([within], y_range=(0.0, 1.0)), Panel([within])])) == ""


def test_records_that_are_not_comparable_are_left_out(records):
    ddim = records["ddim"]
    other = dataclasses.replace(ddim[0], fingerprints={**ddim[0].fingerprints, "grid": "another"})
    with_other = report_html([other, *ddim[1:]], None, "run")
    without = report_html(ddim[1:], None, "run")
    count = r"Probes on record</span><strong>(\d+)"
    assert re.search(count, with_other).group(1) == re.search(count, without).group(1) == str(len(ddim) - 1)


def test_a_page_of_one_probe_alone_works(records):
    assert "of which there is no record" in report_html(records["ddim"], None, "run")
    assert "<h2>Latents during sampling</h2>" not in report_html(records["denoising"], None, "run")


def test_report_command_says_where_the_page_is(run_dir, tmp_path, capsys):
    assert main(["report", str(run_dir), "--out", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "r.html")
    refuses(capsys, ["report", str(tmp_path)], "There are no probe records in")


def test_a_page_of_many_probes_is_as_large_as_one_of_some_and_says_what_it_draws(records, tmp_path, monkeypatch):
    many = [records[probe][-1] for probe in ("ddim", "denoising")]
    sizes = []
    for number in (17, 34):
        store = RecordStore(tmp_path / str(number))
        for step in range(number):
            for record in many:
                store.append(dataclasses.replace(record, step=100 * step))
        whole = []

        def reading(path, part=Part.ALL, whole=whole):
            whole.append(part is Part.ALL)
            return read_record(path, part)

        for reader in ("ldmprobe.io.store", "ldmprobe.tracking.history"):
            monkeypatch.setattr(f"{reader}.read_record", reading)
        html = write_report(store.folder.parent).read_text()
        monkeypatch.undo()
        assert sum(whole) <= 3 * FRAMES + 4  # records with their images and samples: the pictures, the scatters
        frames, steps = (
            json.loads(text) for text in re.search(r"data-frames='(.*?)' data-steps='(.*?)'", html).groups()
        )
        assert steps == thinned([100 * step for step in range(number)], 16)
        assert len(frames) == len(steps)
        assert all(uri.startswith("data:image/png;base64,") for frame in frames for uri in frame)
        assert f"Shown are {len(steps)} of {number} probes" in html
        assert f"Of the many records ({number} of denoising)" in html
        assert f"Probes on record</span><strong>{2 * number}<" in html
        sizes.append(len(html))
    assert sizes[1] < 1.1 * sizes[0]


def test_header_has_the_headlines_and_the_verdict_in_words(records):
    record = records["denoising"][-1]
    html = report_html([record], None, "run")
    bound = record.scalars["denoising_bound_nats"]
    assert f"<span>Held-out bound</span><strong>{bound:.1f}</strong> <em>nats</em>" in html
    verdict = judge([record])
    assert f"<b>{escape(verdict.sentence)}</b>" in html
    assert html.count(" of the bound</i></em></span>") == len(verdict.bands) > 1
    assert all(f"{escape(f'{band.state.value}: {band.evidence}')}</li>" in html for band in verdict.bands)
    assert escape(record.provenance["summary"]) in html


def test_predictions_that_are_not_finite_have_a_page_all_the_same(records):
    gone = [
        dataclasses.replace(
            record,
            curves={
                name: Curve(curve.timestep, curve.log_snr, curve.value * np.nan)
                for name, curve in record.curves.items()
            },
        )
        for record in records["ddim"] + records["denoising"]
    ]
    html = report_html(gone, None, "run")
    assert "could not be drawn" not in html.lower()
    assert "<span>Lowest skill</span>" in html  # a scalar, which was not taken away


def test_what_cannot_be_drawn_is_said_in_its_place(records):
    curve = Curve(np.array([9, 1]), np.array([-1.0, 2.0]), np.ones(2))
    strange = ProbeRecord(
        "ddim", 0, curves={"gap": curve}, metrics=(Metric("gap", "Gap", shown="headline"),), provenance={"notes": 5}
    )
    with pytest.warns(UserWarning, match="'Gap' could not be drawn from these records"):
        html = report_html([strange], None, "run")
    assert "Could not be drawn from these records" in html
    assert "<h2>How it was measured</h2>" in html


def test_terms_lead_to_what_the_glossary_says_of_them(run_dir):
    html = write_report(run_dir).read_text()
    linked, told = re.findall(r'class="term" href="#([\w-]+)"', html), re.findall(r'<dt id="([\w-]+)">', html)
    assert {*linked} == {*told}
    assert len(told) == len({*told}) >= 8
    skill = re.search(r'<dt id="term-skill">Skill</dt><dd>(.*?)</dd>', html)[1]
    assert unescape(skill) in " ".join((ROOT / "docs" / "GLOSSARY.md").read_text().split())
    assert with_terms("Of <i title='skill'>one</i> skill and more skill, nats") == (
        "Of <i title='skill'>one</i> "
        '<a class="term" href="#term-skill">skill</a> and more skill, <a class="term" href="#term-nats">nats</a>'
    )


@pytest.mark.parametrize(
    ("dataset", "address", "links"),
    [
        ("builtin:digits", None, []),
        ("me/photos", "https://wandb.ai/me/x/runs/1", ["https://huggingface.co/datasets/me/photos", "https://wandb.ai/me/x/runs/1"]),
        ("../photos", "javascript:alert(1)", []),
        ('"><script>', 'https://"><script>', ["https://&quot;&gt;&lt;script&gt;"]),
    ],
)  # fmt: skip
def test_the_head_links_to_data_configuration_and_wandb(dataset, address, links):
    config = f"model:\n  dataset: no\ndata:\n  init_args:\n    dataset: {json.dumps(dataset)}\ntrainer: null\n"
    html = links_html(config, address)
    assert re.findall(r'href="(.*?)"', html) == [*links[:-1], "#configuration", *links[-1:]]
    assert escape(dataset) in html
    assert "<script" not in html


def test_without_a_configuration_there_are_no_links(tmp_path):
    assert links_html(config_text_of(tmp_path), address_of(tmp_path)) == ""
    assert "#configuration" in links_html("- not: [a configuration", None)
