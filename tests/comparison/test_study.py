"""A study's statistics and tables, on curves with known answers."""

import numpy as np
import pytest
from scipy import stats

from ldmprobe.tracking.charts.static import png
from study.figures import curves_figure, pareto_figure
from study.halving import better_half, mean_ranks, rung_seeds
from study.statistics import BOUND, FID, GINI, KID, RECOVERABLE, SECONDS, StudyRun, over_seeds, pareto_front, study
from study.tables import study_markdown, study_table
from tests.helpers import FLOAT64, refused


def straight_run(method, seed, bound, fid, seconds=100.0, bound_start=1000.0, fid_start=1000.0):
    """Bound and FID fall in straight lines over 100 steps, time goes evenly."""
    coarse, fine = np.array([0, 50, 100]), np.array([0, 25, 50, 75, 100])
    constant = {name: (fine, np.full(5, 0.5)) for name in (GINI, RECOVERABLE, "skill/0…+3")}
    return StudyRun(
        method,
        seed,
        {
            BOUND: (fine, np.linspace(bound_start, bound, 5)),
            FID: (coarse, np.linspace(fid_start, fid, 3)),
            KID: (coarse, np.linspace(1, 0.01, 3)),
            SECONDS: (fine, np.linspace(0, seconds, 5)),
            **constant,
        },
    )


# Method "a" is 20, 24 and 22 nats better than the baseline, seed by seed, and costs twice as much.
BASE = [straight_run("base", seed, bound, fid) for seed, bound, fid in ((0, 200, 10.0), (1, 240, 11.0), (2, 220, 12.0))]
A = [straight_run("a", seed, bound, fid, 200.0) for seed, bound, fid in ((0, 180, 5.0), (1, 216, 5.5), (2, 198, 7.0))]
B = [straight_run("b", seed, bound, fid) for seed, bound, fid in ((0, 300, 4.0), (1, 300, 4.1), (2, 310, 4.2))]
C = [straight_run("c", seed, bound, fid) for seed, bound, fid in ((0, 400, 20.0), (1, 410, 21.0), (2, 430, 20.5))]


@pytest.fixture(scope="module")
def known():
    return study([*BASE, *A, *B, *C], "base")


def of(study, name):
    return next(method for method in study.methods if method.name == name)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_intervals_over_seeds_are_students():
    values = [3.0, 5.0, 10.0, 4.0]
    found = over_seeds(values)
    interval = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    np.testing.assert_allclose([found.value - found.half_width, found.value + found.half_width], interval, **FLOAT64)
    assert np.isnan(over_seeds([3.0]).half_width)
    assert over_seeds([3.0]).value == 3.0


def test_differences_are_paired_by_seed_and_corrected_for_the_methods(known):
    difference = of(known, "a").difference[BOUND]
    np.testing.assert_allclose(difference.value, -22.0, **FLOAT64)
    p_values = [
        stats.ttest_rel([run.final(BOUND) for run in runs], [run.final(BOUND) for run in BASE]).pvalue
        for runs in (A, B, C)
    ]
    np.testing.assert_allclose(of(known, "b").difference[BOUND].value, np.mean([100, 60, 90]), **FLOAT64)
    adjusted = [float(of(known, name).difference[BOUND].p_value) for name in "abc"]
    np.testing.assert_allclose(adjusted, stats_holm(p_values), **FLOAT64)
    assert not of(known, "base").difference


def stats_holm(p_values):
    """By the book: the k-th smallest of m times m − k + 1, never less than the one before."""
    order, adjusted, least = np.argsort(p_values), np.zeros(len(p_values)), 0.0
    for rank, k in enumerate(order):
        least = adjusted[k] = max(least, min(1.0, (len(p_values) - rank) * p_values[k]))
    return adjusted


def test_a_seed_that_one_method_lacks_is_left_out_of_its_difference():
    found = of(study([*BASE, *A[:2]], "base"), "a")
    np.testing.assert_allclose(found.difference[BOUND].value, -22.0, **FLOAT64)
    assert found.seeds == [0, 1]


def test_steps_to_the_baselines_mean_end_are_where_the_line_crosses_it(known):
    # Targets: bound 220, FID 11; the bound of "a", seed 0, falls from 1000 to 180 over 100 steps.
    exact = [100 * (1000 - 220) / (1000 - end) for end in (180, 216, 198)]
    reached = of(known, "a").steps["bound"]
    np.testing.assert_allclose(reached.mean.value, np.mean(np.ceil(exact)), **FLOAT64)
    assert (reached.seeds, reached.of) == (3, 3)
    assert of(known, "b").steps["bound"].seeds == 0
    assert np.isnan(of(known, "b").steps["bound"].mean.value)
    assert of(known, "b").steps["FID"].seeds == 3
    # A seed of the baseline reaches the mean over seeds, another does not.
    assert of(known, "base").steps["bound"].seeds == 2


def test_both_means_at_one_and_the_same_step():
    at = np.array([0, 50, 100])
    curves = {
        BOUND: (at, np.array([9.0, 4.0, 1.0])),
        FID: (at, np.array([9.0, 1.0, 9.0])),
        SECONDS: (at, np.array([0.0, 1.0, 2.0])),
    }
    run = StudyRun("x", 0, curves)
    assert run.steps_to_reach({BOUND: 2.0}) == 84
    assert run.steps_to_reach({FID: 2.0}) == 44
    assert np.isnan(run.steps_to_reach({BOUND: 2.0, FID: 2.0}))
    assert run.steps_to_reach({BOUND: 4.0, FID: 2.0}) == 50


def test_cost_counts_seconds_and_not_steps(known):
    method = of(known, "a")
    np.testing.assert_allclose(method.seconds["bound"].mean.value, 2 * method.steps["bound"].mean.value, **FLOAT64)
    # The baseline takes 100 s; by then "a" is half way.
    np.testing.assert_allclose(
        method.equal_seconds[BOUND].value, np.mean([(1000 + e) / 2 for e in (180, 216, 198)]), **FLOAT64
    )
    np.testing.assert_allclose(of(known, "b").equal_seconds[FID].value, 4.1, **FLOAT64)


def test_pareto_front_and_who_is_worse_in_both(known):
    assert pareto_front({"a": (1, 3), "b": (2, 2), "c": (2, 3), "d": (3, 1), "e": (np.nan, 0)}) == {"a", "b", "d"}
    assert {method.name for method in known.methods if method.on_front} == {"a", "b"}
    assert of(known, "c").worse_than == ["base", "a", "b"]
    assert of(known, "base").worse_than == ["a"]
    assert of(known, "a").worse_than == []


def test_a_run_that_diverged_is_on_no_front_and_everything_is_still_written():
    lost = [straight_run("lost", seed, np.nan, np.nan) for seed in range(3)]
    found = study([*BASE, *A, *lost], "base")
    assert not of(found, "lost").on_front
    text = study_markdown(found, "lost")
    assert "not finite" in text
    assert "nan" not in text
    for figure in (pareto_figure(found), curves_figure(found)):
        assert png(figure).startswith(b"\x89PNG")


def test_halving_gives_each_rung_twice_the_seeds_and_half_the_candidates():
    seeds = [3, 1, 4, 0, 5]
    assert rung_seeds(1, seeds) == [seeds]
    assert rung_seeds(2, seeds) == [[3], seeds]
    assert rung_seeds(5, seeds) == [[3], [3, 1], seeds]
    assert rung_seeds(8, seeds) == [[3], [3, 1], [3, 1, 4, 0], seeds]


def test_the_better_half_is_that_of_the_mean_rank_in_both_metrics_over_seeds():
    finals = {
        "low bound": {0: (1.0, 9.0), 1: (1.0, 9.0)},  # ranks 1, 3; 1, 2
        "both": {0: (2.0, 5.0), 1: (2.0, 5.0)},  # 2, 1.5; 2, 1
        "diverged": {0: (np.nan, np.inf), 1: (np.nan, np.nan)},  # 4, 4; 3.5, 3.5
        "one seed": {0: (3.0, 5.0)},  # 3, 1.5; 3.5, 3.5: it failed
    }
    assert mean_ranks(finals) == {"low bound": 1.75, "both": 1.625, "diverged": 3.75, "one seed": 2.875}
    assert better_half(finals) == ["low bound", "both"]
    assert better_half({"a": {0: (1.0, 1.0)}, "b": {0: (1.0, 1.0)}, "c": {0: (1.0, 1.0)}}) == ["a"]
    assert better_half({"failed": {}, "ran": {0: (1.0, 1.0)}}) == ["ran"]
    assert better_half({"a": {}, "b": {}, "c": {}}) == ["a"]  # so that a method whose runs fail is told of as missing


def test_without_its_baseline_a_study_is_refused():
    with refused("baseline 'base' has no finished run"):
        study(A, "base")


# --- tables ----------------------------------------------------------------------------------------------------------


def test_markdown_tables_are_rectangular_and_say_what_is_missing(known):
    text = study_markdown(known, "digits", ["c, seed 4 failed with exit code 2"])
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
        assert len(table) == 2 + len(known.methods)
    assert "| a | 198 ± 45 | −22.0 ± 5.0 | 0.0" in text
    assert "never" in text
    assert "(2 of 3 seeds)" in text
    assert "Missing: c, seed 4 failed with exit code 2" in text
    alone = study_markdown(study([BASE[0], A[0]], "base"), "one seed")
    assert "nan" not in alone


def test_tidy_table_holds_every_number(known):
    table = study_table(known).to_pandas()
    assert len(table) == sum(len(values) for run in known.runs for _, values in run.curves.values())
    last = table[(table.metric == BOUND) & (table.step == 100)]
    assert last.groupby("method").value.mean()["a"] == pytest.approx(198)
    assert set(last[last.method == "a"][SECONDS]) == {200.0}
