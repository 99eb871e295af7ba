"""The page and the figures, made of the records of a short run."""

import base64
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmprobe import BalancedTimesteps, Curve, Metric, ProbeRecord, RecordStore, scalar_metrics, write_report
from ldmprobe.callbacks import (
    DDIMProbe,
    DenoisingProbe,
    SampleQuality,
    TimestepBalancer,
    TrainingLoss,
    TrainingObjective,
)
from ldmprobe.cli import main
from ldmprobe.io.record_file import Part, read_record
from ldmprobe.probing.judge import judge
from ldmprobe.tracking.charts import static
from ldmprobe.tracking.charts.chart import Chart, Line, Panel, cut_off, positive
from ldmprobe.tracking.charts.curves import curves_chart, family_chart
from ldmprobe.tracking.charts.frame import frame_of
from ldmprobe.tracking.charts.heatmap import heatmap_chart
from ldmprobe.tracking.charts.scatter import FRAMES, scatter_chart
from ldmprobe.tracking.charts.svg import drawn, drawn_over_training
from ldmprobe.tracking.charts.ticks import log_ticks
from ldmprobe.tracking.glossary import with_terms
from ldmprobe.tracking.history import RunningHistory, thinned
from ldmprobe.tracking.pictures import Pictures
from ldmprobe.tracking.report import report_html
from ldmprobe.tracking.report_links import address_of, config_text_of, links_html
from tests.training.test_latent_diffusion import digits, module, trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    probes = [
        DDIMProbe(2, num_samples=16, num_steps=6),
        DenoisingProbe(2, num_images=16, num_draws=64),
        TrainingLoss(2),
        TrainingObjective(2),
        SampleQuality("builtin:digits", 2, num_samples=16, num_steps=2, num_real=64, kid_subset_size=8),
        TimestepBalancer(2, num_images=16, num_draws=32),
    ]
    trainer(folder, max_steps=4, callbacks=probes).fit(module(timesteps=BalancedTimesteps()), digits())
    return folder


@pytest.fixture(scope="module")
def records(run_dir):
    return RecordStore(run_dir).read()


def of(records, probe):
    return [record for record in records if record.probe == probe]


def test_page_has_a_section_for_every_metric_and_loads_nothing(records, run_dir, tmp_path):
    html = write_report(run_dir, tmp_path / "page.html").read_text()
    headings = set(re.findall("<h2>(.*?)</h2>", html))
    for probe in {record.probe for record in records}:
        last = of(records, probe)[-1]
        drawn = [last.metric(name) for name in (*last.curves, *last.images, *last.scatters)]
        assert {escape(metric.title) for metric in drawn if metric.shown != "record"} - {"pca_real"} <= headings
        assert all(metric.meaning or metric.unit for metric in drawn if metric.shown == "headline")
    assert "<section class=wide><h2>Noise level × training step</h2>" in html  # its buttons need the room
    assert {"Noise level × training step", "How it was measured", "FID over training", "Held-out bound"} <= headings
    assert not re.search(r"<(script|img|iframe)[^>]+src=[\"'](?!data:)", html)
    assert "<link" not in html.replace("<link>", "")
    assert "could not be drawn" not in html.lower()


def test_provenance_is_told_once_and_in_four_digits(records):
    last = of(records, "denoising")[-1]
    known = {"summary": "Falls short here.", "weight": 1 / 3, "parts": {"a": [2 / 3, 7]}}
    html = report_html([dataclasses.replace(last, provenance={**last.provenance, **known})], None, "run")
    assert html.count("Falls short here.") == 1
    assert "weight: 0.3333; parts: a 0.6667, 7;" in html


def test_what_lies_outside_a_frame_is_told(records):
    last = of(records, "denoising")[-1]
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


def test_names_and_configuration_are_text_not_markup(records):
    nasty = "<script>alert(1)</script>"
    record = dataclasses.replace(records[-1], provenance={**records[-1].provenance, nasty: nasty, "summary": nasty})
    html = report_html([*of(records, "ddim"), *of(records, "denoising"), record], f"caption: {nasty}", nasty)
    assert nasty not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4


def test_records_that_are_not_comparable_are_left_out(records):
    ddim = of(records, "ddim")
    other = dataclasses.replace(ddim[0], fingerprints={**ddim[0].fingerprints, "grid": "another"})
    with_other = report_html([other, *ddim[1:]], None, "run")
    without = report_html(ddim[1:], None, "run")
    count = r"Probes on record</span><strong>(\d+)"
    assert re.search(count, with_other).group(1) == re.search(count, without).group(1) == str(len(ddim) - 1)


def test_a_page_of_one_probe_alone_works(records):
    assert "of which there is no record" in report_html(of(records, "ddim"), None, "run")
    assert "<h2>Latents during sampling</h2>" not in report_html(of(records, "denoising"), None, "run")


def test_report_command_says_where_the_page_is(run_dir, tmp_path, capsys):
    assert main(["report", str(run_dir), "--out", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "r.html")
    assert main(["report", str(tmp_path)]) == 2
    assert "There are no probe records in" in capsys.readouterr().err


def test_samples_slider_holds_every_probe(records):
    html = report_html(of(records, "ddim"), None, "run")
    frames = json.loads(re.search(r"data-frames='(.*?)'", html).group(1))
    assert len(frames) == len(of(records, "ddim"))
    assert all(uri.startswith("data:image/png;base64,") for frame in frames for uri in frame)


def test_a_page_of_many_probes_is_as_large_as_one_of_some_and_says_what_it_draws(records, tmp_path, monkeypatch):
    many = [records_of for probe in ("ddim", "denoising") for records_of in of(records, probe)[-1:]]
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
        assert f"Shown are {len(steps)} of {number} probes" in html
        assert f"Of the many records ({number} of denoising)" in html
        assert f"Probes on record</span><strong>{2 * number}<" in html
        sizes.append(len(html))
    assert sizes[1] < 1.1 * sizes[0]


def lines(chart: Chart) -> list[Line]:
    return [mark for panel in chart.panels for mark in panel.marks]


def test_kl_chart_draws_the_curves_of_the_records_beside_the_ideal(records):
    ddim = of(records, "ddim")
    chart = curves_chart(ddim, "step_kl")
    *drawn, ideal, forward = lines(chart)
    assert [line.hover for line in drawn] == [f"training step {record.step}" for record in ddim]
    for line, record in zip(drawn, ddim, strict=True):
        np.testing.assert_array_equal(line.y, record.curves["step_kl"].value)
        np.testing.assert_array_equal(line.x, record.curves["step_kl"].log_snr)
    assert (ideal.name, forward.name) == ("ideal: perfect denoiser", "forward process")
    np.testing.assert_array_equal(ideal.y, ddim[-1].curves["step_kl_ideal"].value)
    ratio = lines(curves_chart(ddim, "step_kl_ratio"))[-1].y
    np.testing.assert_allclose(ratio, drawn[-1].y / ideal.y)


def read_off(path: str, axis) -> np.ndarray:
    """The heights of a path's points, as the page's script reads them off."""
    places = np.array([float(y) for y in re.findall(r"[ML]\S+ ([\d.e+-]+)", path)])
    values = axis.first + (axis.last - axis.first) * places / 1000
    return 10**values if axis.log else values


def test_both_renderers_draw_what_a_chart_describes(records):
    chart = curves_chart(of(records, "ddim"), "step_kl")
    frame = frame_of(chart.panels[0])
    paths = re.findall(r'<path class="line" stroke="(.*?)".*? d="(.*?)"', drawn(chart))
    (axis,) = static.figure(chart).axes
    for line, (color, path), plotted in zip(lines(chart), paths, axis.lines, strict=True):
        expected = positive(line.y)
        np.testing.assert_array_equal(plotted.get_ydata(), expected)
        inside = np.abs(frame.y.places(expected) - 500) < 2000
        np.testing.assert_allclose(read_off(path, frame.y)[inside], expected[inside], rtol=0.02)
        assert (color, plotted.get_color()) == (line.color,) * 2


def test_a_logarithmic_axis_has_six_marks_at_most_and_says_what_is_left_out(records):
    last = of(records, "ddim")[-1]
    curve = dataclasses.replace(
        last.curves["step_kl"], value=np.geomspace(1e-5, 1e33, len(last.curves["step_kl"].value))
    )
    note = "Left out are 3 of 128 directions along which real latents do not vary."
    wild = dataclasses.replace(
        last, curves={**last.curves, "step_kl": curve}, provenance={**last.provenance, "notes": {"step_kl": note}}
    )
    assert 3 <= len(frame_of(curves_chart([wild], "step_kl").panels[0]).y.ticks) <= 6
    assert [text for _, text in log_ticks(1e-5, 1e33)][:2] == ["10⁻⁵", "100"]
    assert [text for _, text in log_ticks(0.4, 4)] == ["0.5", "0.7", "1", "2", "3"]
    assert f"<b>{note}</b>" in report_html([wild], None, "wild")


def test_variance_chart_holds_each_band_against_a_perfect_sampler_and_not_against_1(records):
    ddim = of(records, "ddim")[-1]
    chart = family_chart(ddim, "variance_ratio/*")
    assert chart.panels[0].level is None
    for name, dash in (("variance_ratio", "solid"), ("variance_ratio_ideal", "dash")):
        drawn = [line.y for line in lines(chart) if line.dash == dash]
        np.testing.assert_array_equal(drawn, [ddim.curves[f"{name}/band{k}"].value for k in range(4)])


def test_header_has_the_headlines_and_the_verdict_in_words(records):
    record = of(records, "denoising")[-1]
    html = report_html([record], None, "run")
    bound = record.scalars["denoising_bound_nats"]
    assert f"<span>Held-out bound</span><strong>{bound:.1f}</strong> <em>nats</em>" in html
    verdict = judge([record])
    assert f"<b>{escape(verdict.sentence)}</b>" in html
    assert html.count(" of the bound</i></em></span>") == len(verdict.bands) > 1
    assert all(f"{escape(f'{band.state.value}: {band.evidence}')}</li>" in html for band in verdict.bands)
    assert escape(record.provenance["summary"]) in html


def test_bins_of_the_objective_are_no_scalars_of_their_own(records):
    names = set(scalar_metrics(of(records, "objective")[0]))
    assert names == {"probe_objective/timestep_mean_log_snr", "probe_objective/emphasis_mean_log_snr"}


def test_a_dry_run_of_the_balancer_is_told(records):
    balance = of(records, "balance")
    assert "dry run" not in report_html(balance, None, "not dry")
    dry = [
        dataclasses.replace(r, provenance={**r.provenance, "notes": {"balance_density": "A dry run"}}) for r in balance
    ]
    assert "<b>A dry run</b>" in report_html(dry, None, "dry")
    *_, wanted = lines(curves_chart(dry, "balance_density"))
    np.testing.assert_array_equal(wanted.y, balance[-1].curves["balance_target"].value)


def test_pca_chart_has_a_frame_per_probe_that_moves_only_the_samples(records):
    ddim = of(records, "ddim")
    html = drawn_over_training({record.step: scatter_chart(record, "pca") for record in ddim})
    panels = re.findall(r'data-x="(.*?)" data-y="(.*?)" data-steps="(.*?)" data-moves="(.*?)"', html)
    assert len(panels) == len(ddim[0].scatters["pca"])
    for k, (x, _, steps, moves) in enumerate(panels):
        assert steps == ",".join(str(record.step) for record in ddim)
        for record, packed in zip(ddim, moves.split(","), strict=True):
            across = np.frombuffer(base64.b64decode(packed), np.uint8).reshape(-1, 3).astype(int)[:, :2] @ [16, 1 / 16]
            first, last, _ = map(float, x.split(","))
            want = record.scatters["pca"][k].xy[:, 0]
            inside = (want > first) & (want < last)
            np.testing.assert_allclose((first + (last - first) * across / 4095)[inside], want[inside], atol=last / 500)
    assert html.count("data-points") == len(panels) * len({*ddim[-1].provenance["sample_labels"]})


def test_heatmap_is_white_at_the_ideal_and_blue_where_it_is_good(records):
    denoising = of(records, "denoising")
    for name, high_is_good in (("denoising_skill", True), ("calibration_residual", False)):
        (cells,) = heatmap_chart(denoising, name).panels[0].marks
        assert cells.low == -cells.high
        assert cells.high_is_good == high_is_good
        np.testing.assert_array_equal(cells.values.T, [record.curves[name].value for record in denoising])


@pytest.mark.parametrize("name", ["curves", "heatmaps", "pca", "samples"])
def test_pictures_for_loggers_are_of_some_size(records, run_dir, name):
    pictures = Pictures(of(records, "ddim")[-1], RunningHistory(RecordStore(run_dir)))
    assert name in pictures.names
    picture = np.asarray(Image.fromarray(pictures.drawn(name)).convert("L"))
    assert min(picture.shape) > 100
    assert picture.std() > 5


HEADLINE = Metric("gap", "Gap", ideal=0.0, pool="mean", shown="headline")


def test_a_gap_in_a_curve_is_a_gap_in_the_scalars_and_not_zero():
    curve = Curve(np.array([900, 800, 5]), np.array([-4.0, -3.5, 6.0]), np.array([np.nan, 1.0, 2.0]))
    record = ProbeRecord("ddim", 3, curves={"gap": curve}, metrics=(HEADLINE,))
    assert scalar_metrics(record) == {"probe_ddim/gap/logsnr+06": 2.0}
    levels = {"probe_ddim/gap/t0800": 1.0, "probe_ddim/gap/t0005": 2.0}
    assert scalar_metrics(record, "levels") == {"probe_ddim/gap/logsnr+06": 2.0} | levels


def test_predictions_that_are_not_finite_have_a_page_all_the_same(records):
    gone = [
        dataclasses.replace(
            record,
            curves={
                name: Curve(curve.timestep, curve.log_snr, curve.value * np.nan)
                for name, curve in record.curves.items()
            },
        )
        for record in of(records, "ddim") + of(records, "denoising")
    ]
    html = report_html(gone, None, "run")
    assert "could not be drawn" not in html.lower()
    assert "<span>Lowest skill</span>" in html  # a scalar, which was not taken away


def test_levels_without_timesteps_are_named_by_log_snr():
    curve = Curve(np.array([-1, -1]), np.array([-5.25, 3.75]), np.array([0.1, 0.2]))
    names = set(scalar_metrics(ProbeRecord("training", 3, curves={"training_mse": curve}), "levels"))
    assert names == {"probe_training/mse/logsnr-05.2", "probe_training/mse/logsnr+03.8"}


def test_closed_forms_and_eigen_bands_stay_in_the_record(records):
    ddim = of(records, "ddim")[-1]
    assert {"step_kl_ideal", "step_kl_ratio/band0"} <= set(ddim.curves)
    names = scalar_metrics(ddim, "levels")
    assert any(name.startswith("probe_ddim/step_kl/t") for name in names)
    assert not any("ideal" in name or "step_kl_ratio/band" in name for name in names)


# --- a stranger's records --------------------------------------------------------------------------------------------

ATTACK = "</script></title></pre><script>document.title = 'broken in'</script><img src=x onerror=\"document.title = 'broken in'\">"


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, its scripts, its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag = self.elements[-1][0]
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif tag != "style":
            self.text += data


def hostile(records):
    """The records of a run, with an attack in every text that a stranger may choose, and no PNG among the images."""
    for record in records:
        texts = {ATTACK: ATTACK, "summary": ATTACK, "pca_basis": ATTACK, "num_samples": ATTACK, "caption": [ATTACK]}
        curves = {f"{name}{ATTACK}": curve for name, curve in record.curves.items()}
        metrics = [Metric(name, ATTACK, ATTACK, ATTACK, shown="headline", pool="mean") for name in (ATTACK, *curves)]
        yield dataclasses.replace(
            record,
            created=ATTACK,
            scalars={**record.scalars, ATTACK: 1.0},
            curves={**record.curves, **curves},
            metrics=(*record.metrics, *metrics),
            images={name: [ATTACK.encode(), *images[1:]] for name, images in record.images.items()},
            provenance={**record.provenance, **texts},
            fingerprints={**record.fingerprints, ATTACK: ATTACK},
        )


@pytest.fixture(scope="module")
def hostile_page(records, tmp_path_factory):
    store = RecordStore(tmp_path_factory.mktemp("theirs") / ATTACK.replace("/", "\u2215"))
    for record in hostile(records):
        store.append(record)
    (store.folder.parent / "config.yaml").write_text(f"caption: {ATTACK}")
    return write_report(store.folder.parent, store.folder.parent.parent / "report.html")


def test_a_strangers_text_stays_text(hostile_page, run_dir, tmp_path):
    theirs, ours = Page(hostile_page.read_text()), Page(write_report(run_dir, tmp_path / "r.html").read_text())
    assert [tag for tag, _ in theirs.elements if tag in ("img", "title")] == [
        tag for tag, _ in ours.elements if tag in ("img", "title")
    ]
    assert not any(name.startswith("on") for _, attributes in theirs.elements for name in attributes)
    assert theirs.scripts == ours.scripts
    assert theirs.text.count(ATTACK) >= 10


def test_the_page_has_nowhere_to_load_from(hostile_page):
    page = Page(hostile_page.read_text())
    links = ("src", "href", "srcset", "action", "formaction", "data", "poster", "xlink:href", "background", "ping")
    targets = [attributes[name] for _, attributes in page.elements for name in links if name in attributes]
    assert targets
    assert all(re.match("data:image/(png|webp);base64,|#(term-[a-z-]+|configuration)$", target) for target in targets)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    assert not re.search(
        r"url\((?!data:|#)|@import", "".join(re.findall(r"<style>(.*?)</style>", hostile_page.read_text(), re.DOTALL))
    )
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'nonce-")
    nonces = {attributes.get("nonce") for tag, attributes in page.elements if tag == "script"}
    assert len(nonces) == 1
    assert f"'nonce-{nonces.pop()}'" in policy


def test_only_pngs_of_a_sane_size_are_shown(records):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    last = of(records, "ddim")[-1]
    good = last.images["samples"][0]
    record = dataclasses.replace(last, images={"samples": [svg, bomb.getvalue(), good[:40], good]})
    sources = [
        a["src"] for tag, a in Page(report_html([record], None, "run")).elements if tag == "img" and "class" not in a
    ]
    assert [len(source) > len("data:image/png;base64,") for source in sources] == [False, False, False, True]


def test_what_cannot_be_drawn_is_said_in_its_place(records):
    curve = Curve(np.array([9, 1]), np.array([-1.0, 2.0]), np.ones(2))
    strange = ProbeRecord("ddim", 0, curves={"gap": curve}, metrics=(HEADLINE,), provenance={"notes": 5})
    with pytest.warns(UserWarning, match="'Gap' could not be drawn from these records"):
        html = report_html([strange], None, "run")
    assert "Could not be drawn from these records" in html
    assert "<h2>How it was measured</h2>" in html


@pytest.mark.skipif(not shutil.which("chromium") and "CI" not in os.environ, reason="needs chromium")
@pytest.mark.parametrize("whose", ["theirs", "ours"])
def test_a_browser_draws_the_charts_and_runs_no_strangers_script(whose, hostile_page, run_dir, tmp_path):
    page = hostile_page if whose == "theirs" else write_report(run_dir, tmp_path / "report.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    done = subprocess.run(
        ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout).group(1)
    assert title.endswith("· ldmprobe")
    assert done.stdout.count('class="plot"') >= 11
    assert done.stdout.count('class="tip"') == 1  # the script has run to its end
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr


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
        (
            "me/photos",
            "https://wandb.ai/me/x/runs/1",
            ["https://huggingface.co/datasets/me/photos", "https://wandb.ai/me/x/runs/1"],
        ),
        ("../photos", "javascript:alert(1)", []),
        ('"><script>', 'https://"><script>', ["https://&quot;&gt;&lt;script&gt;"]),
    ],
)
def test_the_head_links_to_data_configuration_and_wandb(dataset, address, links):
    config = f"model:\n  dataset: no\ndata:\n  init_args:\n    dataset: {json.dumps(dataset)}\ntrainer: null\n"
    html = links_html(config, address)
    assert re.findall(r'href="(.*?)"', html) == [*links[:-1], "#configuration", *links[-1:]]
    assert escape(dataset) in html
    assert "<script" not in html


def test_without_a_configuration_there_are_no_links(tmp_path):
    assert links_html(config_text_of(tmp_path), address_of(tmp_path)) == ""
    assert "#configuration" in links_html("- not: [a configuration", None)
