"""Runs laid side by side: real short runs, the table against their records, the page by its parts, and what is
refused."""

import dataclasses
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from diffusers import DDIMScheduler

import ldmprobe.callbacks
from ldmprobe import LatentCodec, RecordStore, StarvedBand, write_comparison
from ldmprobe.analysis.comparison import BandGain
from ldmprobe.audit.observation import is_probe
from ldmprobe.callbacks import DDIMProbe, DenoisingProbe
from ldmprobe.cli import main
from ldmprobe.comparison.compare import PAGE, TABLE
from ldmprobe.comparison.configuration import ONLOOKERS, configuration_differences, only_seeds_differ
from ldmprobe.comparison.findings import compare
from ldmprobe.comparison.page import comparison_html
from ldmprobe.comparison.words import listed, mark, verdict
from ldmprobe.tracking.comparable import comparable, moments, read_runs
from tests.helpers import refused
from tests.training.test_latent_diffusion import digits, module, trainer

NASTY = "</script><script>alert(1)</script>{0}"


def fit(folder, max_steps=1, ddim=None, denoising=None, **settings):
    probes = [
        DDIMProbe(2, **{"num_samples": 16, "num_steps": 6, "num_reference": 128, **(ddim or {})}),
        DenoisingProbe(2, **{"num_images": 16, "num_draws": 64, "num_reference": 128, **(denoising or {})}),
    ]
    trainer(folder, max_steps=max_steps, callbacks=probes).fit(module(**settings), digits())
    return folder


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    fit(folder / "plain", max_steps=6)
    fit(folder / "starved", max_steps=4, timesteps=StarvedBand(0, 300, 0.01))
    fit(folder / "other_seed", max_steps=4, seed=1)
    (folder / "plain" / "config.yaml").write_text(
        "run_dir: plain\nmodel:\n  lr: 0.1\n  layers: [1, 2]\nprobes:\n- n: 1\n"
    )
    (folder / "starved" / "config.yaml").write_text(f"run_dir: starved\nmodel:\n  lr: {NASTY}\n  layers: [1, 2]\n")
    return folder


@pytest.fixture(scope="module")
def written(runs_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "new" / "comparison"
    write_comparison([runs_dir / name for name in ("plain", "starved", "other_seed")], out)
    return out


@pytest.fixture(scope="module")
def table(written):
    return pd.read_parquet(written / TABLE)


@pytest.fixture(scope="module")
def html(written):
    return (written / PAGE).read_text()


def at_step(runs_dir, name, step, probe="denoising"):
    (record,) = [record for record in RecordStore(runs_dir / name).read(probe) if record.step == step]
    return record


# --- when ------------------------------------------------------------------------------------------------------------


def test_runs_are_compared_at_the_last_common_step_and_at_their_last(runs_dir):
    runs = read_runs([runs_dir / "plain", runs_dir / "starved"])
    common, last = moments(runs, "denoising")
    assert [record.step for record in common.records.values()] == [4, 4]
    assert [record.step for record in last.records.values()] == [6, 4]
    assert common.description == "step 4, the last in common"
    assert last.description == "each run's last step"


def test_runs_of_one_length_are_compared_once(runs_dir):
    (only,) = moments(read_runs([runs_dir / "starved", runs_dir / "other_seed"]), "ddim")
    assert only.description == "step 4, the last of every run"


def test_untrained_networks_are_no_common_step(runs_dir):
    runs = read_runs([runs_dir / "plain", runs_dir / "starved"])
    first, other = runs
    kept = {
        **other.records,
        "denoising": [dataclasses.replace(r, step=r.step and r.step + 1) for r in other.records["denoising"]],
    }
    (only,) = moments([first, dataclasses.replace(other, records=kept)], "denoising")
    assert only.name == "last"


# --- the table -------------------------------------------------------------------------------------------------------


def test_curves_are_those_of_the_records(runs_dir, table):
    for probe, metric in (
        ("denoising", "denoising_skill"),
        ("denoising", "calibration_residual"),
        ("ddim", "marginal_gap"),
    ):
        for at, step in (("common", 4), ("last", 6)):
            curve = at_step(runs_dir, "plain", step, probe).curves[metric]
            rows = table[(table.run == "plain") & (table["at"] == at) & (table.metric == metric)]
            assert set(rows.step) == {step}
            for column in ("timestep", "log_snr", "value", "lower", "upper"):
                np.testing.assert_array_equal(rows[column], getattr(curve, column))


def test_bounds_over_training_are_those_of_the_records(runs_dir, table):
    for name in ("plain", "starved", "other_seed"):
        rows = table[(table.run == name) & (table["at"] == "each") & (table.metric == "denoising_bound_nats")]
        records = RecordStore(runs_dir / name).read("denoising")
        assert list(rows.step) == [record.step for record in records]
        np.testing.assert_allclose(rows.value, [record.scalars["denoising_bound_nats"] for record in records])
        assert (rows.lower < rows.value).all()
        assert (rows.value < rows.upper).all()


def test_gains_add_up_from_levels_to_bands_to_the_difference_of_the_bounds(runs_dir, table):
    for name in ("starved", "other_seed"):
        gains = table[(table.run == name) & (table["at"] == "common")].groupby("metric").value.sum()
        bounds = [at_step(runs_dir, run, 4).scalars["denoising_bound_nats"] for run in ("plain", name)]
        for metric in ("gain_nats", "gain_nats_band", "gain_nats_total"):
            assert gains[metric] == pytest.approx(bounds[0] - bounds[1])
    assert set(table[table.metric.str.startswith("gain")].run) == {"starved", "other_seed"}


def test_gains_have_the_interval_of_progress(runs_dir, table):
    # denoising_progress pairs a run with its own earlier record: the same statistic, by another hand.
    record = at_step(runs_dir, "plain", 4)
    earlier = read_runs([runs_dir / "plain", runs_dir / "starved"])[0]
    before = [each for each in earlier.records["denoising"] if each.step == 2]
    pair = [
        dataclasses.replace(earlier, label=label, records={"denoising": one})
        for label, one in (("a", before), ("b", [record]))
    ]
    gain = compare(pair).gains[0].levels["b"]
    progress = record.curves["denoising_progress"]
    np.testing.assert_allclose(gain.value, progress.value, rtol=1e-9)
    np.testing.assert_allclose(gain.half_width, (progress.upper - progress.lower) / 2, rtol=1e-6)


def test_corrected_p_values_are_never_smaller(table):
    tested = table[table.p_holm.notna()]
    assert len(tested) > 0
    assert (tested.p_holm >= tested.p_value).all()
    assert (tested.p_holm <= 1).all()


def test_imbalance_figures_are_those_of_the_records(runs_dir, table):
    record = at_step(runs_dir, "starved", 4)
    rows = table[(table.run == "starved") & (table["at"] == "common")]
    assert rows[rows.metric == "imbalance_gini"].value.item() == record.scalars["imbalance_gini"]
    shares = rows[rows.metric == "imbalance_share"]
    expected = [record.scalars[f"imbalance_share/logsnr{low:+03.0f}"] for low in shares.low]
    np.testing.assert_array_equal(shares.value, expected)
    assert list(shares.low) == sorted(shares.low)
    assert (shares.high - shares.low == 3).all()


def test_the_first_run_reaches_its_own_bound_in_all_its_steps(table):
    rows = table[table.run == "plain"].set_index("metric")
    assert rows.loc["steps_to_reach", "value"] == 6
    assert rows.loc["steps_ratio", "value"] == 1


def test_steps_are_those_at_which_the_others_cross_the_first_runs_bound(runs_dir):
    runs = read_runs([runs_dir / "starved", runs_dir / "plain"])  # shorter first, so that the longer may get there
    found = compare(runs)
    steps, bound = found.bounds["plain"]
    target = found.bounds["starved"][1].value[-1]
    expected = np.interp(-target, -bound.value, steps) if bound.value.min() <= target else np.nan
    assert found.steps["plain"].steps == pytest.approx(expected, nan_ok=True)


# --- the page --------------------------------------------------------------------------------------------------------


def test_page_has_every_section_and_loads_nothing(html):
    for heading in (
        "Who is better, and at which noise levels",
        "The same, level by level",
        "Held-out bound over training",
        "Training steps to the same quality",
        "Samples",
        "Denoising skill on held-out data",
        "Where loss can still be recovered",
        "Gain over a linear denoiser, in nats",
        "KL before and after each denoiser pass",
        "KL per pass ÷ its ideal",
        "Samples against real latents, level by level",
        "In numbers",
        "What was compared",
    ):
        assert f"<h2>{heading}</h2>" in html
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


def test_page_says_where_the_configurations_differ(runs_dir, html):
    differing = configuration_differences([runs_dir / "plain", runs_dir / "starved"])
    assert differing == {"model.lr": ["0.1", NASTY], "probes[0].n": ["1", "not set"]}
    row = r"<th>model.lr</th><td>0.1</td><td>&lt;/script&gt;.*?</td><td>unknown</td>"
    assert re.search(row, html)  # other_seed has none
    assert "model.layers" not in html


def test_a_configuration_that_unfolds_without_end_is_cut_off(tmp_path):
    levels = [f"a{k}: &a{k} {{{', '.join(f'x{i}: *a{k - 1}' for i in range(10))}}}" for k in range(1, 9)]
    (tmp_path / "config.yaml").write_text("\n".join(["a0: &a0 {x: 1}", *levels]))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("b: 1")
    assert len(configuration_differences([tmp_path, other])) == 10_000 + 1


def test_labels_and_configurations_are_text_not_markup(runs_dir):
    page = comparison_html(compare(read_runs([runs_dir / "plain", runs_dir / "starved"], [NASTY, "b"])))
    assert NASTY not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;{0}" in page
    assert "could not be drawn" not in page.lower()


def test_the_same_run_twice_under_two_names_does_not_differ(runs_dir, tmp_path):
    shutil.copytree(runs_dir / "plain", tmp_path / "copy")
    page = write_comparison([runs_dir / "plain", tmp_path / "copy"], tmp_path / "out").read_text()
    assert "copy is the same over all levels" in page
    rows = pd.read_parquet(tmp_path / "out" / TABLE)
    assert (rows[rows.metric.str.startswith("gain")].value == 0).all()
    assert (rows[rows.metric == "steps_ratio"].value == 1).all()


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


def test_runs_without_a_denoising_probe_are_compared_by_their_samples(runs_dir, tmp_path):
    for name in ("plain", "starved"):
        shutil.copytree(
            runs_dir / name / "probes", tmp_path / name / "probes", ignore=shutil.ignore_patterns("denoising*")
        )
    page = write_comparison([tmp_path / "plain", tmp_path / "starved"], tmp_path / "out").read_text()
    assert "there are no paired differences" in page
    assert "<h2>KL before and after each denoiser pass</h2>" in page
    assert "Who is better" not in page
    assert "could not be drawn" not in page.lower()


def test_many_runs_have_a_row_each_and_the_words_are_folded_away(runs_dir):
    plain, starved = read_runs([runs_dir / "plain", runs_dir / "starved"])
    found = compare([plain, *(dataclasses.replace(starved, label=label) for label in "BCDEF")])
    page = comparison_html(found)
    assert "<h1>plain against 5 others" in page
    assert "<summary>In words, with p</summary>" in page
    *_, total = found.gains[0].bands["B"]
    assert f'<span class="{mark(total)}">' in page
    assert ": B, C, D, E, F." in page
    assert "could not be drawn" not in page.lower()


def test_many_runs_are_counted_not_named():
    assert [listed(list("BCDEF")[:n]) for n in (1, 2, 3, 5)] == ["B", "B and C", "B, C and D", "5 others"]


# --- what is refused -------------------------------------------------------------------------------------------------

DIFFERENT = {
    ("samples", "reference", "codec"): {"ddim": {"seed": 1, "num_reference": 200}, "codec": LatentCodec(scale=2.0)},
    ("held_out",): {"denoising": {"num_draws": 80}},
}


def test_families_lie_over_each_other_by_log_snr_without_pairs(runs_dir, tmp_path):
    """Another schedule, and a sampler's other steps: nothing is paired, and skill is compared where both have it."""
    other = fit(tmp_path / "cosine", max_steps=4, scheduler=DDIMScheduler(beta_schedule="squaredcos_cap_v2"))
    page = write_comparison([runs_dir / "starved", other], tmp_path / "out").read_text()
    assert "could not be drawn" not in page.lower()
    comparison = compare(read_runs([runs_dir / "starved", other]))
    assert comparison.gains == []
    levels, skills = comparison.common_levels, comparison.skills
    curves = [record.curves["denoising_skill"] for record in comparison.moments["denoising"][0].records.values()]
    assert levels[0] >= max(curve.log_snr.min() for curve in curves)
    assert levels[-1] <= min(curve.log_snr.max() for curve in curves)
    difference = np.abs(skills["cosine"] - skills["starved"])
    assert f"{difference.max():.3f}" in page
    assert "do not compare" in page
    table = pd.read_parquet(tmp_path / "out" / TABLE)
    assert not table.metric.str.startswith("gain_nats").any()
    assert {"denoising_skill", "step_kl"} <= set(table.metric)


@pytest.mark.parametrize("parts", DIFFERENT)
def test_probes_that_are_not_comparable_are_refused_by_the_parts_that_differ(runs_dir, tmp_path, parts):
    other = fit(tmp_path / "other", **DIFFERENT[parts])
    differing = "".join(rf"(?=.*\b{part} \()" for part in parts)
    with refused(rf"probes of .*plain and .*other are not comparable; what differs is {differing}"):
        write_comparison([runs_dir / "plain", runs_dir / "starved", other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_number_of_held_out_images_under_the_same_draws_is_refused(runs_dir, tmp_path):
    records = RecordStore(runs_dir / "starved").read("denoising")
    store = RecordStore(tmp_path / "other")
    for record in records:
        store.append(dataclasses.replace(record, provenance={**record.provenance, "num_images": 64}))
    with refused(r"what differs is held_out \(held-out images, num_images"):
        read_runs([runs_dir / "plain", tmp_path / "other"])


def test_records_without_the_errors_of_their_draws_are_refused(runs_dir, tmp_path):
    store = RecordStore(tmp_path / "old")
    for record in RecordStore(runs_dir / "starved").read("denoising"):
        store.append(dataclasses.replace(record, per_sample={}))
    with refused(r"denoising record of step 0 in .*old lacks the errors of its draws"):
        read_runs([runs_dir / "plain", tmp_path / "old"])


def test_earlier_records_measured_otherwise_are_left_out(runs_dir):
    records = RecordStore(runs_dir / "plain").read("ddim")
    other = dataclasses.replace(records[0], fingerprints={**records[0].fingerprints, "grid": "another"})
    assert comparable([other, *records[1:]]) == records[1:]


def test_runs_are_two_or_more_and_each_once(runs_dir, tmp_path):
    plain = runs_dir / "plain"
    for directories, message in (
        ([plain], "Got 1 run; expected two or more"),
        ([plain, runs_dir / "starved" / ".." / "plain"], "are the same run; give each run once"),
        ([plain, runs_dir / "nowhere"], r"nowhere is not a directory; expected the directory of a run"),
        ([plain, tmp_path], "There are no probe records in"),
    ):
        with refused(message):
            write_comparison(directories, tmp_path / "out")


def test_runs_need_a_probe_in_common(runs_dir, tmp_path):
    ignored = {"ddim": "denoising*", "denoising": "ddim*"}
    for kept, left_out in ignored.items():
        shutil.copytree(
            runs_dir / "plain" / "probes", tmp_path / kept / "probes", ignore=shutil.ignore_patterns(left_out)
        )
    with refused(r"no probe in common \(.*ddim: ddim; .*denoising: denoising\)"):
        read_runs([tmp_path / "ddim", tmp_path / "denoising"])


def test_labels_are_as_many_as_runs_and_different(runs_dir):
    directories = [runs_dir / "plain", runs_dir / "starved"]
    assert [run.label for run in read_runs(directories, ["a", "b"])] == ["a", "b"]
    for labels, message in (
        (["a"], "Got 1 labels for 2 runs"),
        (["a", "a"], "expected different ones"),
        (["a", " "], "none empty"),
    ):
        with refused(message):
            read_runs(directories, labels)


def test_runs_of_one_name_are_told_apart_by_their_parents(runs_dir, tmp_path):
    for seed in ("seed0", "seed1"):
        shutil.copytree(runs_dir / "starved", tmp_path / seed / "uniform")
    found = read_runs([tmp_path / "seed0" / "uniform", tmp_path / "seed1" / "uniform"])
    assert [run.label for run in found] == ["seed0/uniform", "seed1/uniform"]


def test_an_out_that_holds_something_else_is_refused_and_an_earlier_comparison_replaced(runs_dir, tmp_path):
    directories = [runs_dir / "starved", runs_dir / "other_seed"]
    (tmp_path / "file").write_text("mine")
    with refused(r"file, which is a file; expected a directory"):
        write_comparison(directories, tmp_path / "file")
    with refused(r"holds something else \(\w+\); choose a new directory"):
        write_comparison(directories, runs_dir / "starved")
    out = tmp_path / "out"
    first = write_comparison(directories, out).read_text()
    second = write_comparison(directories, out, ["a", "b"]).read_text()
    assert "<h1>a against b" in second
    assert "<h1>a against b" not in first
    assert sorted(path.name for path in out.iterdir()) == [PAGE, TABLE]
    (out / "notes.txt").write_text("mine")
    with refused(r"\(notes.txt\)"):
        write_comparison(directories, out)


def test_an_out_that_cannot_be_made_is_refused(runs_dir, tmp_path):
    (tmp_path / "file").write_text("mine")
    with refused(r"The comparison cannot be written to .*file/out"):
        write_comparison([runs_dir / "starved", runs_dir / "other_seed"], tmp_path / "file" / "out")


def test_command_says_where_the_page_is(runs_dir, tmp_path, capsys):
    plain, starved = str(runs_dir / "plain"), str(runs_dir / "starved")
    assert main(["compare", plain, starved, "--out", str(tmp_path / "out"), "--labels", "A", "B"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / PAGE)
    assert "<h1>A against B" in (tmp_path / "out" / PAGE).read_text()
    assert main(["compare", plain, "--out", str(tmp_path / "one")]) == 2
    assert "expected two or more" in capsys.readouterr().err


# --- seeds -----------------------------------------------------------------------------------------------------------

SEEDED = """run_dir: {run_dir}
seed_everything: {seed}
model: {{lr: {lr}, seed: 3}}
trainer:
  logger: {{init_args: {{name: {run_dir}}}}}
  callbacks: [{{init_args: {{dirpath: {run_dir}/checkpoints}}}}]
"""


def seeded(runs_dir, folder, **runs):
    """Copies of "plain", "other_seed" and "starved", in this order, with configurations as told: (seed, learning
    rate)."""
    for source, (name, (seed, lr)) in zip(("plain", "other_seed", "starved"), runs.items(), strict=False):
        shutil.copytree(runs_dir / source / "probes", folder / name / "probes")
        (folder / name / "config.yaml").write_text(SEEDED.format(run_dir=folder / name, seed=seed, lr=lr))
    return [folder / name for name in runs]


def test_where_only_seeds_differ_no_winner_is_declared(runs_dir, tmp_path):
    first, other = seeded(runs_dir, tmp_path, a=(0, 0.1), b=(1, 0.1))
    assert only_seeds_differ(first, other)
    assert list(configuration_differences([first, other])) == ["seed_everything"]
    found = compare(read_runs([first, other]))
    assert any(band.significant for band in found.gains[0].bands["b"])  # the pairs' own statistics do tell them apart
    html = comparison_html(found)
    assert "<b>One seed against another of the same configuration: there is no winner.</b>" in html
    assert "What another seed changes, and at which noise levels" in html
    assert 'class="better"' not in html
    assert 'class="worse"' not in html


QUIET = """
  log_every_n_steps: 5
  enable_progress_bar: false
  callbacks:
  - {class_path: ldmprobe.callbacks.TrainingLoss, init_args: {every_n_steps: 10}}
  - {init_args: {dirpath: B/checkpoints}}
data: {init_args: {num_workers: 4}}
"""


def test_a_seed_is_one_whatever_is_shown_of_it_and_a_callback_that_may_train_is_not(runs_dir, tmp_path):
    first, other = seeded(runs_dir, tmp_path, a=(0, 0.1), b=(1, 0.1))
    config = other / "config.yaml"
    start = config.read_text().partition("\n  callbacks")[0]
    config.write_text(start + QUIET.replace("B/", f"{other}/"))
    assert "there is no winner" in comparison_html(compare(read_runs([first, other])))
    config.write_text(config.read_text().replace("TrainingLoss", "TimestepBalancer"))
    assert "there is no winner" not in comparison_html(compare(read_runs([first, other])))
    known = {name for name in ldmprobe.callbacks.__all__ if is_probe(getattr(ldmprobe.callbacks, name))}
    assert known - {"ProbeCallback"} <= ONLOOKERS
    assert "TimestepBalancer" not in ONLOOKERS


def test_another_configuration_may_win_and_its_sibling_seed_may_not(runs_dir, tmp_path):
    runs = seeded(runs_dir, tmp_path, a=(0, 0.1), b=(1, 0.1), c=(1, 0.2))
    found = compare(read_runs(runs))
    assert (found.other_seeds, found.of_chance) == ({"b"}, False)
    html = comparison_html(found)
    assert "there is no winner" not in html
    assert re.search(r"c is <span class=\"(better|worse)\">", html)
    assert not re.search(r"b is <span class=\"(better|worse)\">", html)


def test_of_unknown_configurations_nothing_is_taken_for_a_seed(runs_dir, tmp_path):
    first, other = seeded(runs_dir, tmp_path, a=(0, 0.1), b=(1, 0.1))
    (other / "config.yaml").unlink()
    assert not only_seeds_differ(first, other)


def test_a_seeds_verdict_says_which_way_it_came_out():
    everywhere = BandGain(-np.inf, np.inf, "all", -1.25, 0.3, 0.0, 0.0)
    assert (
        verdict("b", everywhere, other_seed=True) == "b, another seed, came out 1.25 ± 0.30 nats higher over all levels"
    )
