"""A run read back in Python: tables, figures, the verdict, and what a notebook shows."""

from dataclasses import replace

import numpy as np
import pytest

from ldmprobe import RecordStore, load_run
from tests.helpers import refused
from tests.probing.test_judge import LEVELS, probed


def written(folder, *records):
    """The run of these records, whose bound is their step."""
    for record in records:
        record.scalars["denoising_bound_nats"] = float(record.step)
        RecordStore(folder).append(record)
    return load_run(folder)


def test_a_run_is_read_back_as_frames_figures_and_a_verdict(tmp_path):
    records = [probed(100, 0.2), probed(200, 0.1)]
    run = written(tmp_path, *records)
    frame = run.frame("denoising_skill")
    assert len(frame) == 2 * LEVELS
    wide = frame.pivot(index="step", columns="log_snr", values="value")
    np.testing.assert_allclose(wide.loc[200], records[1].curves["denoising_skill"].value)
    np.testing.assert_allclose(frame["upper"] - frame["lower"], 0.04)
    assert run.frame("denoising_bound_nats")["value"].tolist() == [100, 200]
    assert len(run.plot("denoising_skill").axes[0].lines) >= 2
    assert len(run.plot("denoising_bound_nats").axes) == 1
    with refused("no metric 'denoising_skil'. Did you mean denoising_skill"):
        run.plot("denoising_skil")
    html = run._repr_html_()
    assert run.verdict.state.value in html
    assert "learning" in repr(run)
    assert len(repr(records)) < 300


def test_a_metric_of_two_probes_is_that_of_both(tmp_path):
    """As ``step_kl`` of two sampling probes."""
    records = [probed(100, 0.2), replace(probed(100, 0.1), probe="fast"), replace(probed(200, 0.1), probe="fast")]
    run = written(tmp_path, *records)
    frame = run.frame("denoising_skill").set_index(["probe", "step"])
    for record in records:
        of_record = frame.loc[record.probe, record.step]
        np.testing.assert_allclose(of_record["value"], record.curves["denoising_skill"].value)
    assert len(frame) == 3 * LEVELS
    bounds = run.frame("denoising_bound_nats")
    assert sorted(zip(bounds["probe"], bounds["value"], strict=True)) == [
        ("denoising", 100), ("fast", 100), ("fast", 200)
    ]  # fmt: skip
    with refused(
        r"'denoising_skill' is a metric of denoising, fast; say which: `run.plot\('denoising_skill', 'fast'\)"
    ):
        run.plot("denoising_skill")
    assert len(run.plot("denoising_skill", "fast").axes[0].lines) > len(
        run.plot("denoising_skill", "denoising").axes[0].lines
    )


def test_a_directory_without_records_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="There are no probe records"):
        load_run(tmp_path)
