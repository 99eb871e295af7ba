"""The table of a comparison against the records that it is made of."""

import dataclasses
from itertools import product

import numpy as np
import pytest

from ldmprobe import RecordStore
from ldmprobe.comparison.findings import compare
from ldmprobe.tracking.comparable import read_runs
from tests.comparison.runs import at_step


def test_what_is_no_difference_is_that_of_the_records(runs_dir, table):
    curves = (("denoising", "denoising_skill"), ("denoising", "calibration_residual"), ("ddim", "marginal_gap"))
    for (probe, metric), (at, step) in product(curves, (("common", 4), ("last", 6))):
        curve = at_step(runs_dir, "plain", step, probe).curves[metric]
        rows = table[(table.run == "plain") & (table["at"] == at) & (table.metric == metric)]
        assert set(rows.step) == {step}
        for column in ("timestep", "log_snr", "value", "lower", "upper"):
            np.testing.assert_array_equal(rows[column], getattr(curve, column))
    for name in ("plain", "starved", "other_seed"):
        rows = table[(table.run == name) & (table["at"] == "each") & (table.metric == "denoising_bound_nats")]
        records = RecordStore(runs_dir / name).read("denoising")
        assert list(rows.step) == [record.step for record in records]
        np.testing.assert_allclose(rows.value, [record.scalars["denoising_bound_nats"] for record in records])
        assert ((rows.lower < rows.value) & (rows.value < rows.upper)).all()
    record = at_step(runs_dir, "starved", 4)
    rows = table[(table.run == "starved") & (table["at"] == "common")]
    assert rows[rows.metric == "imbalance_gini"].value.item() == record.scalars["imbalance_gini"]
    shares = rows[rows.metric == "imbalance_share"]
    expected = [record.scalars[f"imbalance_share/logsnr{low:+03.0f}"] for low in shares.low]
    np.testing.assert_array_equal(shares.value, expected)
    assert list(shares.low) == sorted(shares.low)
    assert (shares.high - shares.low == 3).all()


def test_gains_add_up_from_levels_to_bands_to_the_difference_of_the_bounds(runs_dir, table):
    for name in ("starved", "other_seed"):
        gains = table[(table.run == name) & (table["at"] == "common")].groupby("metric").value.sum()
        bounds = [at_step(runs_dir, run, 4).scalars["denoising_bound_nats"] for run in ("plain", name)]
        for metric in ("gain_nats", "gain_nats_band", "gain_nats_total"):
            assert gains[metric] == pytest.approx(bounds[0] - bounds[1])
    assert set(table[table.metric.str.startswith("gain")].run) == {"starved", "other_seed"}
    tested = table[table.p_holm.notna()]
    assert len(tested) > 0
    assert (tested.p_holm >= tested.p_value).all()
    assert (tested.p_holm <= 1).all()


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


def test_steps_are_those_at_which_the_others_cross_the_first_runs_bound(runs_dir, table):
    own = table[table.run == "plain"].set_index("metric").value
    assert (own["steps_to_reach"], own["steps_ratio"]) == (6, 1)
    found = compare(read_runs([runs_dir / "starved", runs_dir / "plain"]))  # so that the longer may get there
    steps, bound = found.bounds["plain"]
    target = found.bounds["starved"][1].value[-1]
    expected = np.interp(-target, -bound.value, steps) if bound.value.min() <= target else np.nan
    assert found.steps["plain"].steps == pytest.approx(expected, nan_ok=True)
