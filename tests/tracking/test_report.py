"""The page and the figures, made of the records of a short run."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from ldmprobe.callbacks import DDIMProbe, DenoisingProbe, TrainingLoss
from ldmprobe.cli import main
from ldmprobe.probing.record import Curve, ProbeRecord
from ldmprobe.tracking import charts, figures
from ldmprobe.tracking.loggers import scalar_metrics
from ldmprobe.tracking.report import report_html, write_report
from ldmprobe.tracking.store import RecordStore
from tests.training.test_latent_diffusion import digits, module, trainer


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    probes = [
        DDIMProbe(2, num_samples=16, num_steps=6),
        DenoisingProbe(2, num_images=16, num_draws=64),
        TrainingLoss(2),
    ]
    trainer(folder, max_steps=4, callbacks=probes).fit(module(), digits())
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
        "KL before and after each denoiser pass",
        "The same, relative to the ideal",
        "Samples against real latents, level by level",
        "How: their variance, by eigen-band",
        "Noise level × training step",
        "Latents during sampling",
        "Where loss can still be recovered",
        "The same levels in nats",
        "Denoising skill on held-out data",
        "Training and held-out error by noise level",
        "Error over training",
        "How it was measured",
    ):
        assert f"<h2>{heading}</h2>" in html
    assert not re.search(r"<(script|img|iframe)[^>]+src=[\"'](?!data:)", html)
    assert "<link" not in html.replace("<link>", "")
    assert html.count('class="plotly-graph-div"') == 11


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


def test_kl_chart_draws_the_curves_of_the_records(records):
    ddim = of(records, "ddim")
    figure = charts.kl_chart(ddim)
    (ideal,) = [trace for trace in figure.data if trace.name == "ideal: perfect denoiser"]
    expected = ddim[-1].curves["step_kl_ideal"].value
    assert [y for y in ideal.y if y is not None] == pytest.approx([v for v in expected if np.isfinite(v) and v > 0])
    assert sum(str(trace.name).startswith("step ") for trace in figure.data) == len(ddim)


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
