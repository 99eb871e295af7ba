"""Charts against the records that they draw."""

import base64
import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from ldmprobe import Curve, RecordStore
from ldmprobe.tracking.charts import static
from ldmprobe.tracking.charts.chart import Chart, Line, positive
from ldmprobe.tracking.charts.curves import curves_chart, family_chart
from ldmprobe.tracking.charts.frame import frame_of
from ldmprobe.tracking.charts.heatmap import heatmap_chart
from ldmprobe.tracking.charts.runs import runs_charts
from ldmprobe.tracking.charts.scatter import scatter_chart
from ldmprobe.tracking.charts.svg import drawn, drawn_over_training
from ldmprobe.tracking.charts.ticks import log_ticks
from ldmprobe.tracking.history import RunningHistory
from ldmprobe.tracking.pictures import Pictures
from ldmprobe.tracking.report import report_html
from ldmprobe.tracking.style import IDEAL


def lines(chart: Chart) -> list[Line]:
    return [mark for panel in chart.panels for mark in panel.marks]


def test_kl_chart_draws_the_curves_of_the_records_beside_the_ideal(records):
    ddim = records["ddim"]
    chart = curves_chart(ddim, "step_kl")
    *drawn, ideal, memorizer, mixture, forward = lines(chart)
    assert [line.hover for line in drawn] == [f"training step {record.step}" for record in ddim]
    for line, record in zip(drawn, ddim, strict=True):
        np.testing.assert_array_equal(line.y, record.curves["step_kl"].value)
        np.testing.assert_array_equal(line.x, record.curves["step_kl"].log_snr)
    assert (ideal.name, forward.name) == ("ideal: perfect denoiser", "forward process")
    assert (memorizer.name, mixture.name) == ("ideal: memorizer", "ideal: mixture of Gaussians")
    assert len({line.color for line in (ideal, memorizer, mixture, forward)}) == 4
    np.testing.assert_array_equal(ideal.y, ddim[-1].curves["step_kl_ideal"].value)
    ratio = lines(curves_chart(ddim, "step_kl_ratio"))[-1].y
    np.testing.assert_allclose(ratio, drawn[-1].y / ideal.y)


def test_each_run_is_drawn_beside_its_own_ideal(records):
    """Another run of twice the steps, whose samples have another ideal."""
    first = records["ddim"][-1]

    def twice(curve):
        return Curve(np.repeat(curve.timestep, 2), np.repeat(curve.log_snr, 2), np.repeat(curve.value, 2) / 2)

    other = dataclasses.replace(first, curves={name: twice(curve) for name, curve in first.curves.items()})
    chart = runs_charts({"last": {"one": first, "other": other}}, "step_kl")["last"]
    *drawn, ideal, own = lines(chart)
    assert [line.color for line in (ideal, own)] == [line.color for line in drawn]
    assert [line.dash for line in (ideal, own)] == ["dash", "dash"]
    assert (ideal.name, own.name) == ("ideal: perfect denoiser, of each run", "")
    assert own.hover == "ideal: perfect denoiser, other"
    for line, record in ((ideal, first), (own, other)):
        np.testing.assert_array_equal(line.y, record.curves["step_kl_ideal"].value)
        np.testing.assert_array_equal(line.x, record.curves["step_kl_ideal"].log_snr)
    # Where all have the same, there is one.
    *drawn, ideal = lines(runs_charts({"last": {"one": first, "other": records["ddim"][0]}}, "step_kl")["last"])
    assert (len(drawn), ideal.name, ideal.color) == (2, "ideal: perfect denoiser", IDEAL)


def read_off(path: str, axis) -> np.ndarray:
    """The heights of a path's points, as the page's script reads them off."""
    places = np.array([float(y) for y in re.findall(r"[ML]\S+ ([\d.e+-]+)", path)])
    values = axis.first + (axis.last - axis.first) * places / 1000
    return 10**values if axis.log else values


def test_both_renderers_draw_what_a_chart_describes(records):
    chart = curves_chart(records["ddim"], "step_kl")
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
    last = records["ddim"][-1]
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
    ddim = records["ddim"][-1]
    chart = family_chart(ddim, "variance_ratio/*")
    assert chart.panels[0].level is None
    for name, dash in (("variance_ratio", "solid"), ("variance_ratio_ideal", "dash")):
        drawn = [line.y for line in lines(chart) if line.dash == dash]
        np.testing.assert_array_equal(drawn, [ddim.curves[f"{name}/band{k}"].value for k in range(4)])


def test_a_dry_run_of_the_balancer_is_told(records):
    balance = records["balance"]
    assert "dry run" not in report_html(balance, None, "not dry")
    dry = [
        dataclasses.replace(r, provenance={**r.provenance, "notes": {"balance_density": "A dry run"}}) for r in balance
    ]
    assert "<b>A dry run</b>" in report_html(dry, None, "dry")
    *_, wanted = lines(curves_chart(dry, "balance_density"))
    np.testing.assert_array_equal(wanted.y, balance[-1].curves["balance_target"].value)


def test_pca_chart_has_a_frame_per_probe_that_moves_only_the_samples(records):
    ddim = records["ddim"]
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
    denoising = records["denoising"]
    for name, high_is_good in (("denoising_skill", True), ("calibration_residual", False)):
        (cells,) = heatmap_chart(denoising, name).panels[0].marks
        assert cells.low == -cells.high
        assert cells.high_is_good == high_is_good
        np.testing.assert_array_equal(cells.values.T, [record.curves[name].value for record in denoising])


@pytest.mark.parametrize("name", ["curves", "heatmaps", "pca", "samples"])
def test_pictures_for_loggers_are_of_some_size(records, run_dir, name):
    pictures = Pictures(records["ddim"][-1], RunningHistory(RecordStore(run_dir)))
    assert name in pictures.names
    picture = np.asarray(Image.fromarray(pictures.drawn(name)).convert("L"))
    assert min(picture.shape) > 100
    assert picture.std() > 5
