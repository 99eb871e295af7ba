"""The page and the figures, made of the records of a short run."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ldmprobe.analysis.bands import range_name
from ldmprobe.callbacks import (
    DDIMProbe,
    DenoisingProbe,
    SampleQuality,
    TimestepBalancer,
    TrainingLoss,
    TrainingObjective,
)
from ldmprobe.cli import main
from ldmprobe.diffusion.balanced_timesteps import BalancedTimesteps
from ldmprobe.io.record import Curve, Part, ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.tracking import charts, figures
from ldmprobe.tracking.history import thinned
from ldmprobe.tracking.loggers import scalar_metrics
from ldmprobe.tracking.report import report_html, write_report
from tests.training.test_latent_diffusion import digits, module, trainer


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


def test_page_has_every_section_and_loads_nothing(run_dir, tmp_path):
    html = write_report(run_dir, tmp_path / "page.html").read_text()
    for heading in (
        "Samples over training",
        "FID over training",
        "KID over training",
        "KL before and after each denoiser pass",
        "The same, relative to the ideal",
        "Samples against real latents, level by level",
        "How: their variance, by eigen-band",
        "Each step by itself",
        "Noise level × training step",
        "Latents during sampling",
        "What the optimiser sees of the noise levels",
        "Where held-out error falls",
        "Where the balancer steered to",
        "Where loss can still be recovered",
        "The same levels in nats",
        "Are predictions of the right size?",
        "Are predictions shifted?",
        "Denoising skill on held-out data",
        "Training and held-out error by noise level",
        "Error over training",
        "How it was measured",
    ):
        assert f"<h2>{heading}</h2>" in html
    assert not re.search(r"<(script|img|iframe)[^>]+src=[\"'](?!data:)", html)
    assert "<link" not in html.replace("<link>", "")
    assert html.count('class="plotly-graph-div"') == 19


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
    assert "Without held-out data" in report_html(of(records, "ddim"), None, "run")
    assert "<h2>Latents during sampling</h2>" not in report_html(of(records, "denoising"), None, "run")


def test_report_command_says_where_the_page_is(run_dir, tmp_path, capsys):
    assert main(["report", str(run_dir), "--out", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "r.html")
    assert main(["report", str(tmp_path)]) == 2
    assert "There are no probe records in" in capsys.readouterr().err


def test_samples_slider_holds_every_probe(records):
    html = report_html(of(records, "ddim"), None, "run")
    frames = json.loads(re.search(r"const frames = (\[\[.*?\]\]), steps", html).group(1))
    assert len(frames) == len(of(records, "ddim"))
    assert all(uri.startswith("data:image/png;base64,") for frame in frames for uri in frame)


def test_a_page_of_many_probes_is_as_large_as_one_of_some_and_says_what_it_draws(records, tmp_path, monkeypatch):
    many = [records_of for probe in ("ddim", "denoising") for records_of in of(records, probe)[-1:]]
    sizes = []
    for number in (20, 40):
        store = RecordStore(tmp_path / str(number))
        for step in range(number):
            for record in many:
                store.append(dataclasses.replace(record, step=100 * step))
        whole = []
        real = ProbeRecord.read
        monkeypatch.setattr(
            ProbeRecord,
            "read",
            lambda path, part=Part.ALL, real=real, whole=whole: whole.append(part is Part.ALL) or real(path, part),
        )
        html = write_report(store.folder.parent).read_text()
        monkeypatch.undo()
        assert sum(whole) <= 2 * charts.FRAMES + 4  # records with their images and samples: the pictures, the scatters
        frames = json.loads(re.search(r"const frames = (\[\[.*?\]\]), steps = (\[.*?\])", html).group(1))
        steps = json.loads(re.search(r", steps = (\[.*?\])", html).group(1))
        assert steps == thinned([100 * step for step in range(number)], 16)
        assert len(frames) == len(steps)
        assert f"Shown are {len(steps)} of {number} probes" in html
        assert f"Of the many records ({number} of ddim)" in html
        assert f"Probes on record</span><strong>{2 * number}<" in html
        sizes.append(len(html))
    assert sizes[1] < 1.1 * sizes[0]


def test_kl_chart_draws_the_curves_of_the_records(records):
    ddim = of(records, "ddim")
    figure = charts.kl_chart(ddim)
    (ideal,) = [trace for trace in figure.data if trace.name == "ideal: perfect denoiser"]
    expected = ddim[-1].curves["step_kl_ideal"].value
    assert [y for y in ideal.y if y is not None] == pytest.approx([v for v in expected if np.isfinite(v) and v > 0])
    assert sum(str(trace.name).startswith("step ") for trace in figure.data) == len(ddim)


def test_a_logarithmic_axis_has_six_marks_at_most_and_says_what_is_left_out(records):
    last = of(records, "ddim")[-1]
    curve = dataclasses.replace(
        last.curves["step_kl"], value=np.geomspace(1e-5, 1e33, len(last.curves["step_kl"].value))
    )
    provenance = {**last.provenance, "directions_without_variance": 3, "directions_collapsed": 2}
    wild = dataclasses.replace(last, curves={**last.curves, "step_kl": curve}, provenance=provenance)
    marks = charts.kl_chart([wild]).layout.yaxis.dtick
    assert 38 / marks <= 6
    assert charts.kl_chart([last]).layout.yaxis.dtick <= 2
    html = report_html([wild], None, "wild")
    dimension = last.provenance["kl_dimension"]
    assert f"3 of {dimension} directions along which real latents do not vary" in html
    assert "Along 2 directions the samples no longer vary" in html


def test_variance_chart_holds_each_band_against_a_perfect_sampler_and_not_against_1(records):
    ddim = of(records, "ddim")[-1]
    figure = charts.variance_chart(ddim)
    assert not figure.layout.shapes
    for name, style in (("variance_ratio", None), ("variance_ratio_ideal", "dash")):
        drawn = [list(trace.y) for trace in figure.data if trace.line.dash == style]
        expected = [
            [v if np.isfinite(v) and v > 0 else None for v in ddim.curves[f"{name}/band{k}"].value] for k in range(4)
        ]
        assert drawn == expected


def test_header_weighs_the_bound_over_the_levels_that_were_probed(records):
    record = of(records, "denoising")[-1]
    html = report_html([record], None, "run")
    low, high = record.provenance["log_snr_range"]
    bound = record.scalars["denoising_bound_nats"]
    assert f"<strong>{bound:.1f}</strong> <em>nats, from {bound:.0f}; log-SNR {range_name(low, high)}</em>" in html
    summary, remarks = (escape(record.provenance[name]) for name in ("summary", "remarks"))
    assert f"<b>{summary}</b> {remarks}" in html


def test_objective_chart_draws_density_weight_and_emphasis_of_each_record(records):
    record = of(records, "objective")[0]
    drawn = [list(trace.y) for trace in charts.objective_chart([record]).data]
    assert drawn == [
        list(record.curves[name].value) for name in ("timestep_density", "loss_weight", "training_emphasis")
    ]
    later = dataclasses.replace(record, step=9)
    assert sum(trace.mode == "lines" for trace in charts.objective_chart([record, later]).data) == 6


def test_a_constant_weight_is_not_drawn_as_its_rounding(records):
    record = of(records, "objective")[0]
    curve = record.curves["loss_weight"]
    nearly = dataclasses.replace(curve, value=1 + 1e-16 * np.arange(len(curve.value)))
    figure = charts.objective_chart([dataclasses.replace(record, curves={**record.curves, "loss_weight": nearly})])
    low, high = figure.layout.yaxis2.range
    assert high - low == pytest.approx(1)
    assert low < 0 < high


def test_bins_of_the_objective_are_no_scalars_of_their_own(records):
    record = of(records, "objective")[0]
    assert set(scalar_metrics(record)) == {"probe/timestep_mean_log_snr", "probe/emphasis_mean_log_snr"}


def test_steering_chart_draws_what_was_done_and_of_a_dry_run_what_would_have_been(records):
    balance = of(records, "balance")
    dry = [dataclasses.replace(record, provenance={**record.provenance, "dry_run": True}) for record in balance]
    for decisions, metric in ((balance, "balance_density"), (dry, "balance_target")):
        lines = [trace for trace in charts.steering_chart(decisions).data if trace.mode == "lines"]
        assert [list(line.y) for line in lines] == [list(record.curves[metric].value) for record in balance]
    assert "A dry run: nothing was changed" in report_html(dry, None, "dry")
    assert "A dry run" not in report_html(balance, None, "not dry")


def test_pca_chart_has_a_frame_per_probe_that_moves_only_the_samples(records):
    ddim = of(records, "ddim")
    figure = charts.pca_chart(ddim)
    assert [frame.name for frame in figure.frames] == [str(record.step) for record in ddim]
    moved = {figure.data[k].name for frame in figure.frames for k in frame.traces}
    assert moved == {"samples"}


@pytest.mark.parametrize("name", ["pca", "kl", "heatmap", "samples"])
def test_static_figures_are_pictures_of_some_size(records, name):
    ddim = of(records, "ddim")
    figure = {
        "pca": lambda: figures.pca_figure(ddim[-1]),
        "kl": lambda: figures.kl_figure(ddim),
        "heatmap": lambda: figures.heatmap_figure(ddim),
        "samples": lambda: figures.samples_figure(ddim[-1]),
    }[name]()
    picture = np.asarray(Image.open(io.BytesIO(figures.figure_png(figure))).convert("L"))
    assert min(picture.shape) > 100
    assert picture.std() > 5


def test_gaps_in_a_curve_are_gaps_in_the_scalars_not_zeros():
    curve = Curve(np.array([900, 5]), np.array([-4.0, 6.0]), np.array([np.nan, 2.0]))
    assert scalar_metrics(ProbeRecord("ddim", 3, curves={"step_kl": curve})) == {"probe/step_kl/t0005": 2.0}


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
    assert "Lowest skill" not in html


def test_what_is_said_in_a_headers_place_stays_in_the_header(records):
    without = [dataclasses.replace(record, provenance={}) for record in of(records, "denoising")]
    with pytest.warns(UserWarning, match="'run' could not be drawn from these records"):
        html = report_html(without, None, "run")
    assert re.search(r"<body><header><section><h2>run</h2><p>Could not be drawn.*?</section></header><main>", html)


def test_training_bands_are_named_by_log_snr():
    curve = Curve(np.array([-1, -1]), np.array([-5.25, 3.75]), np.array([0.1, 0.2]))
    names = set(scalar_metrics(ProbeRecord("training", 3, curves={"training_mse": curve})))
    assert names == {"probe/training_mse/logsnr-05.2", "probe/training_mse/logsnr+03.8"}


def test_closed_forms_and_eigen_bands_stay_in_the_record(records):
    ddim = of(records, "ddim")[-1]
    assert {"step_kl_ideal", "variance_ratio/band0"} <= set(ddim.curves)
    names = scalar_metrics(ddim)
    assert any(name.startswith("probe/step_kl/t") for name in names)
    assert not any("ideal" in name or "band" in name for name in names)


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
        metrics = {f"{name}/{ATTACK}": curve for name, curve in record.curves.items()}
        yield dataclasses.replace(
            record,
            created=ATTACK,
            scalars={**record.scalars, ATTACK: 1.0},
            curves={**record.curves, **metrics},
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
    assert [tag for tag, _ in theirs.elements if tag in ("script", "img", "title")] == [
        tag for tag, _ in ours.elements if tag in ("script", "img", "title")
    ]
    assert not any(name.startswith("on") for _, attributes in theirs.elements for name in attributes)
    assert not any("broken in" in script for script in theirs.scripts)
    assert theirs.text.count(ATTACK) >= 10


def test_the_page_has_nowhere_to_load_from(hostile_page):
    page = Page(hostile_page.read_text())
    links = ("src", "href", "srcset", "action", "formaction", "data", "poster", "xlink:href", "background", "ping")
    targets = [attributes[name] for _, attributes in page.elements for name in links if name in attributes]
    assert targets
    assert all(target.startswith("data:image/png;base64,") for target in targets)
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
    sources = [a["src"] for tag, a in Page(report_html([record], None, "run")).elements if tag == "img"]
    assert [len(source) > len("data:image/png;base64,") for source in sources] == [False, False, False, True]


def test_what_cannot_be_drawn_is_said_in_its_place(records):
    bare = [ProbeRecord(record.probe, record.step) for record in records]
    with pytest.warns(UserWarning, match="could not be drawn from these records"):
        html = report_html(bare, None, "run")
    assert "Could not be drawn from these records" in html
    assert "<h2>How it was measured</h2>" in html


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium") and "CI" not in os.environ, reason="needs chromium")
@pytest.mark.parametrize("whose", ["theirs", "ours"])
def test_a_browser_draws_the_charts_and_runs_no_strangers_script(whose, hostile_page, run_dir, tmp_path):
    page = hostile_page if whose == "theirs" else write_report(run_dir, tmp_path / "report.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    done = subprocess.run(
        ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout).group(1)
    assert title.endswith("· ldmprobe")
    assert done.stdout.count('class="main-svg"') >= 11
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr
