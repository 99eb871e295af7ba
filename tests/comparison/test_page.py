"""The page of a comparison, by its parts."""

import dataclasses
import re
from html import escape

import numpy as np
import pytest

from ldmprobe.analysis.comparison import BandGain
from ldmprobe.comparison.findings import compare
from ldmprobe.comparison.page import comparison_html
from ldmprobe.comparison.words import listed, mark, verdict
from ldmprobe.tracking.comparable import read_runs
from tests.comparison.runs import NASTY, at_step


def test_page_has_every_section_and_loads_nothing(html):
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert len(headings) == len(set(headings)) == 15
    assert "could not be drawn" not in html.lower()
    assert html.count('class="chart"') == 19  # nine at two moments, and the bound over training
    for title in ("Held-out bound", "Imbalance"):
        assert f"<td>{title}</td><td>step 4, the last in common</td>" in html
    assert not re.search(r"<(script|img|iframe)[^>]+src=[\"'](?!data:)", html)
    assert "default-src 'none'" in html


def test_each_chart_shows_every_run_at_one_moment_and_has_a_button_for_the_other(html):
    charts = re.findall(r'<div class="chart">.*?</figure></div></div>', html)
    assert len(charts) == 19
    for chart in charts:
        shown = [name for name in re.findall(r'data-name="(.*?)"', chart) if "deal" not in name]
        assert set(shown) in ({"starved", "other_seed"}, {"starved", "other_seed", "plain"})
        assert len(shown) == len(set(shown))
    choices = re.findall(r'<div class="choice"><div class="buttons">(.*?)</div><div><div.*?</div><div hidden>', html)
    assert len(choices) == 9  # all but the bound over training
    for buttons in choices:
        labels = re.findall(r'aria-pressed="(.*?)">(.*?)</button>', buttons)
        assert labels == [("true", "step 4, the last in common"), ("false", "each run&#x27;s last step")]


def test_words_say_what_the_table_holds(table, html):
    rows = table[(table["at"] == "common") & table.metric.isin(["gain_nats_band", "gain_nats_total"])]
    text = re.sub(r"<[^>]+>", "", html[html.index("<main>") : html.index("<h2>The same, level by level")]).replace(
        "−", "-"
    )
    found = re.findall(
        r"(starved|other_seed) is (better|worse) at log-SNR ([+-]?[\d.]+)…[+-]?[\d.]+ by ([\d.]+) ± [\d.]+ nats", text
    )
    clear = rows[(rows.p_holm < 0.05) & (rows.metric == "gain_nats_band")]
    first_table = found[: len(clear)]
    begins = -5.3  # the grid, within the first band
    assert [(run, word, float(low)) for run, word, low, _ in first_table] == [
        (row.run, "better" if row.value > 0 else "worse", max(row.low, begins)) for row in clear.itertuples()
    ]
    for (*_, gain), row in zip(first_table, clear.itertuples(), strict=True):
        assert float(gain) == pytest.approx(abs(row.value), abs=0.6 * (row.upper - row.lower) / 2)
    unclear = rows[(rows.p_holm >= 0.05) & (rows.metric == "gain_nats_band")]
    assert len(re.findall(r"cannot be told apart at", text)) >= len(unclear)


def test_samples_stand_side_by_side(runs_dir, html):
    grids = html[html.index("<h2>Samples</h2>") : html.index("<details>", html.index("<h2>Samples</h2>"))]
    assert grids.count('<div class="samples">') == 3
    assert grids.count("<img ") == 3 * len(at_step(runs_dir, "plain", 6, "ddim").images["samples"])
    assert "the same noise and class" in grids


@pytest.mark.parametrize("lost", ["plain", "starved"])
def test_a_run_that_has_diverged_is_shown_as_such(runs_dir, lost):
    runs = []
    for run in read_runs([runs_dir / "plain", runs_dir / "starved"]):
        last = run.records["denoising"][-1]
        gone = dataclasses.replace(
            last.per_sample["denoising_errors"], value=np.full_like(last.per_sample["denoising_errors"].value, np.inf)
        )
        nan = {
            name: dataclasses.replace(curve, value=np.full_like(curve.value, np.nan))
            for name, curve in last.curves.items()
        }
        broken = dataclasses.replace(last, curves=nan, per_sample={"denoising_errors": gone})
        kept = {**run.records, "denoising": [*run.records["denoising"][:-1], broken]}
        runs.append(dataclasses.replace(run, records=kept) if run.label == lost else run)
    page = comparison_html(compare(runs))
    assert "could not be drawn" not in page.lower()
    assert "not finite" in page


def test_many_runs_have_a_row_each_and_the_words_are_folded_away(runs_dir):
    plain, starved = read_runs([runs_dir / "plain", runs_dir / "starved"], [NASTY, "B"])
    found = compare(
        [plain, *(dataclasses.replace(starved, label=label) for label in ("B", "C", "D", "E", NASTY[::-1]))]
    )
    page = comparison_html(found)
    assert f"<h1>{escape(NASTY)} against 5 others" in page
    assert "<summary>In words, with p</summary>" in page
    *_, total = found.gains[0].bands["B"]
    assert f'<span class="{mark(total)}">' in page
    assert f": B, C, D, E, {escape(NASTY[::-1])}." in page
    assert NASTY not in page  # neither a label nor, in `starved`, a setting
    assert NASTY[::-1] not in page
    assert "could not be drawn" not in page.lower()


def test_words_count_many_runs_and_say_which_way_another_seed_came_out():
    assert [listed(list("BCDEF")[:n]) for n in (1, 2, 3, 5)] == ["B", "B and C", "B, C and D", "5 others"]
    everywhere = BandGain(-np.inf, np.inf, "all", -1.25, 0.3, 0.0, 0.0)
    told = verdict("b", everywhere, other_seed=True)
    assert told == "b, another seed, came out 1.25 ± 0.30 nats higher over all levels"
