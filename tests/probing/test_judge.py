"""The verdict on runs made by hand: what each state rests on, and what is not accused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldmprobe import Curve, PerSample, ProbeRecord, RecordStore
from ldmprobe.cli import main
from ldmprobe.probing.denoising_record import levels_of
from ldmprobe.probing.judge import judge
from ldmprobe.probing.outliers import outliers
from ldmprobe.probing.verdict import State, Verdict, signed
from ldmprobe.tracking.run_verdict import told_in_full, verdict_on

LOG_SNR = np.array([-5.26, -4.5, -3.7, -2.9, -2.2, -1.5, -0.7, 0.0, 0.8, 1.5, 2.3, 3.0, 3.7, 4.5, 5.3, 6.0, 7.07])
LEVELS, IMAGES, DRAWS = len(LOG_SNR), 64, 256
VARIANCE = np.logspace(0, -4, 64)[:, None]  # of the data's directions
LINEAR = (1 / (1 + np.exp(-LOG_SNR) / VARIANCE)).mean(0)
BEST = 0.8 * LINEAR
SCATTER = np.random.default_rng(0).standard_normal((LEVELS, DRAWS))
OWN = np.random.default_rng(1).standard_normal((9, LEVELS, DRAWS))  # of each probe's weights


def stored(folder: Path, *records: ProbeRecord) -> Path:
    for record in records:
        RecordStore(folder).append(record)
    return folder


def at(low: float, high: float) -> np.ndarray:
    return (low <= LOG_SNR) & (high >= LOG_SNR)


def probed(step: int, excess=0.0, residual=0.0, gain=1.0, mse=None, linear=LINEAR) -> ProbeRecord:
    """A probe whose error is ``excess`` above the best at each level, and whose other curves are as told."""
    mean = BEST * (1 + np.broadcast_to(excess, LEVELS)) if mse is None else mse
    errors = mean[:, None] * (1 + 0.1 * SCATTER + 0.01 * OWN[step % 9])

    def curve(value, width):
        value = np.broadcast_to(np.asarray(value, float), LEVELS)
        return Curve(np.arange(LEVELS), LOG_SNR, value, value - width, value + width)

    curves = {
        "denoising_mse": curve(errors.mean(1), 0.02 * mean),
        "denoising_mmse": curve(linear, 0.0),
        "denoising_skill": curve(1 - errors.mean(1) / linear, 0.02),
        "calibration_residual": curve(residual, 0.004),
        "prediction_gain": curve(gain, 0.004),
        "prediction_offset": curve(0.003, 0.004),
        "prediction_chance": curve(0.0, 0.0),
    }
    record = ProbeRecord(
        "denoising",
        step,
        curves=curves,
        per_sample={"denoising_errors": PerSample(np.arange(LEVELS), LOG_SNR, errors)},
        provenance={"num_draws": DRAWS, "num_images": IMAGES, "dimension": 256},
        fingerprints={"grid": "g"},
    )
    parts = dict.fromkeys(("prediction_gain", "prediction_offset"), torch.from_numpy(0.02 * OWN[0].T))
    curves |= outliers(levels_of(record), curves, parts, torch.arange(DRAWS) % IMAGES)
    return record


def unfinished(left: float) -> dict:
    """As short training leaves it: the clean end is the last."""
    rest = left * np.exp(np.minimum(LOG_SNR - 7, 0) / 1.5)
    return {"excess": rest, "residual": rest / (1 + rest), "gain": 1 + rest}


def states(verdict: Verdict) -> dict[str, State]:
    return {band.name: band.state for band in verdict.bands}


@pytest.mark.parametrize("steps", [[100], [100, 200], [0, 100, 200, 300, 400]])
def test_a_perfect_denoiser_has_nothing_to_do(steps):
    verdict = judge([probed(step) for step in steps])
    assert verdict.state is State.CALIBRATED
    assert set(states(verdict).values()) == {State.CALIBRATED}
    assert (verdict.state.exit_code, verdict.recoverable) == (0, 0.0)
    assert verdict.action.startswith("Nothing to do")


def test_what_falls_is_unfinished_and_what_falls_no_longer_is_at_fault():
    course = [probed(step, **unfinished(left)) for step, left in ((100, 0.2), (200, 0.1), (300, 0.1))]
    learning, left_behind = judge(course[:2]), judge(course)
    assert learning.state is State.LEARNING
    assert states(learning)["+6…+7.1"] is State.LEARNING
    assert (learning.worst.name, learning.since) == ("+6…+7.1", 100)
    assert learning.change < -1
    assert 0 < learning.recoverable < learning.bound
    assert left_behind.state is State.AT_FAULT
    assert states(left_behind)["−5.3…−3"] is State.CALIBRATED
    assert "log-SNR +3…+6 and +6…+7.1" in left_behind.sentence
    # Of one probe alone no one knows which of the two it is.
    assert judge(course[:1]).state is State.AT_FAULT
    assert "probe again" in judge(course[:1]).action


STANDING_OUT = -0.05 * at(-1, 1)  # of the gain
COURSES = {
    State.LEARNING: [unfinished(left) for left in (0.4, 0.3, 0.2)],
    State.AT_FAULT: [{**unfinished(left), "gain": unfinished(left)["gain"] + STANDING_OUT} for left in (0.4, 0.3, 0.2)],
    State.OVERFITTING: [{"excess": excess} for excess in (0.0, 0.04, 0.08)],
}


@pytest.mark.parametrize("state", COURSES)
@pytest.mark.parametrize("extra", [[301], [301, 302, 303, 304]])
def test_a_probe_right_after_another_changes_no_verdict(state, extra, tmp_path):
    """Training that ends just past a multiple of ``every_n_steps``, and is resumed and ends so again."""
    course = [probed(step, **each) for step, each in zip((100, 200, 300), COURSES[state], strict=True)]
    known = judge(course)
    assert (known.state, known.since) == (state, 200)
    again = [probed(step, **COURSES[state][-1]) for step in extra]
    verdict = judge([*course, *again])
    assert (verdict.state, verdict.action, verdict.since) == (known.state, known.action, 200)
    assert verdict_on(stored(tmp_path, *course, *again)) == verdict


def test_one_probe_above_the_best_is_one_though_another_is_right_behind_it():
    course = [probed(step, excess) for step, excess in ((100, 0.3), (200, 0.1), (300, 0.0), (400, 0.03), (401, 0.03))]
    assert judge(course).state is not State.OVERFITTING


def test_a_run_that_is_probed_often_is_judged_by_a_tenth_of_its_training(tmp_path):
    """From probe to probe the bound falls by less than a thousandth."""
    course = [probed(step, excess=4 * step**-0.5) for step in range(1000, 2001, 20)]
    verdict = judge(course)
    assert (verdict.state, verdict.since) == (State.LEARNING, 1800)
    assert verdict_on(stored(tmp_path, *course)).since == 1800  # though few of the records are read


def test_a_level_that_stands_out_from_both_sides_is_at_fault_however_much_still_falls():
    planted = {**unfinished(0.15), "gain": unfinished(0.15)["gain"] - 0.05 * at(-1, 1)}
    before = {**unfinished(0.2), "gain": unfinished(0.2)["gain"] - 0.05 * at(-1, 1)}
    verdict = judge([probed(100, **before), probed(200, **planted)])
    assert verdict.state is State.AT_FAULT
    assert verdict.sentence.startswith("Noise levels on either side of log-SNR −0.7…+0.8 do better: ")
    assert "too large" in verdict.sentence
    # What is about to go is no fault: it was three times as large a probe before.
    going = {**before, "gain": unfinished(0.2)["gain"] - 0.15 * at(-1, 1)}
    assert "either side" not in judge([probed(100, **going), probed(200, **planted)]).sentence


def drawn(often: np.ndarray) -> ProbeRecord:
    """What is drawn at each level, ÷ evenly."""
    even = np.ones(LEVELS)
    curves = {
        "timestep_density": Curve(np.arange(LEVELS), LOG_SNR, often),
        "even_density": Curve(np.arange(LEVELS), LOG_SNR, even),
    }
    return ProbeRecord("objective", 0, curves=curves)


def test_levels_that_are_hardly_drawn_are_at_fault_where_something_is_left_though_they_fall(tmp_path):
    hardly = at(0, 2.9)
    course = [probed(step, excess=left * hardly, residual=left * hardly) for step, left in ((100, 0.3), (200, 0.2))]
    assert states(judge(course))["0…+3"] is State.LEARNING
    verdict = judge([drawn(np.where(hardly, 0.0143, 1.4)), *course])
    assert states(verdict) == {**states(judge(course)), "0…+3": State.AT_FAULT}
    assert verdict.sentence.startswith("At log-SNR 0…+3, levels are drawn 1/70 times as often as evenly, and ")
    # What the command, the page and a run's end say, also after draws that no denoising record has seen yet.
    for records in ((drawn(np.where(hardly, 0.0143, 1.4)), *course), (replace(drawn(np.ones(LEVELS)), step=300),)):
        assert verdict_on(stored(tmp_path, *records)) == verdict
    # Each band is told with what it has left itself.
    both = probed(200, excess=0.2 * at(0, 5.5), residual=0.2 * at(0, 5.5))
    told = judge([drawn(np.where(at(0, 5.5), 0.0143, 1.4)), course[0], both])
    costs = [band.evidence for band in told.bands if "drawn 1/70" in band.evidence]
    assert told.sentence == f"At log-SNR 0…+3, {costs[0]}; at log-SNR +3…+6, {costs[1]}."
    # A tenth as often is what EDM's log-normal draws do at their ends; and where nothing is left, nothing is missed.
    assert judge([drawn(np.where(hardly, 0.1, 1.1)), *course]).state is State.LEARNING
    assert judge([drawn(np.where(at(-3, -1), 0.0, 1.1)), *course]).state is State.LEARNING


def test_levels_that_do_not_change_at_all_while_others_do_are_at_fault():
    before, after = probed(100, 0.2), probed(200, 0.1)
    name = "denoising_errors"
    errors = np.where(at(-1, 1)[:, None], before.per_sample[name].value, after.per_sample[name].value)
    after = replace(after, per_sample={name: replace(after.per_sample[name], value=errors)})
    verdict = judge([before, after])
    assert (verdict.state, states(verdict)["+3…+6"]) == (State.AT_FAULT, State.LEARNING)
    assert verdict.sentence.startswith(
        "At log-SNR −3…0 and 0…+3, answers have not changed at all since the probe before"
    )
    # Where all are as they were, nothing was trained, which is no level's fault.
    assert judge([before, replace(before, step=200)]).state is not State.AT_FAULT


def test_where_no_noise_can_be_seen_nothing_is_at_fault():
    """As rectified flow's clean end: an error of 1.04 at log-SNR +12 that no longer falls."""
    clean = LOG_SNR > 4
    mse, linear = np.where(clean, 1.04, BEST), np.where(clean, 0.99, LINEAR)
    course = [probed(step, residual=0.05 * clean, gain=1 - 0.1 * clean, mse=mse, linear=linear) for step in (100, 200)]
    verdict = judge(course)
    assert verdict.state is State.LEVELLED_OFF
    assert verdict.recoverable > 0.005 * verdict.bound
    # Where the network itself sees more than the best linear denoiser could, there is something to see.
    mse = np.where(clean, 0.8, BEST)
    seeing = [probed(step, residual=0.05 * clean, mse=mse, linear=linear) for step in (100, 200)]
    assert states(judge(seeing))["+6…+7.1"] is State.AT_FAULT


def test_a_gain_that_moves_no_sample_is_no_fault():
    """As EDM and rectified flow next to the data, half way: 20 % of a noise that is 2 % of the latents."""
    course = [probed(step, gain=1 + 0.2 * at(6, 6.5)) for step in (100, 200)]
    assert all(state is not State.AT_FAULT for state in states(judge(course)).values())
    course = [probed(step, gain=1 + 0.2 * at(0, 0.5)) for step in (100, 200)]
    assert states(judge(course))["0…+3"] is State.AT_FAULT


def test_a_rise_that_lasts_is_overfitting_and_one_probe_is_not():
    course = [(100, 0.3), (200, 0.1), (300, 0.0), (400, 0.03), (500, 0.06)]
    records = [probed(step, excess) for step, excess in course]
    assert judge(records[:4]).state is not State.OVERFITTING
    verdict = judge(records)
    assert verdict.state is State.OVERFITTING
    assert "step 300" in verdict.action
    scattered = zip((100, 200, 300, 400, 500), (0.0, 0.04, -0.01, 0.05, 0.02), strict=True)
    assert judge([probed(*each) for each in scattered]).state is not State.OVERFITTING


def test_nan_is_broken_and_so_is_worse_than_predicting_nothing():
    gone = probed(200, mse=np.where(at(-1, 1), np.nan, BEST))
    verdict = judge([probed(100), gone])
    assert verdict.state is State.BROKEN
    assert "log-SNR −3…0 and 0…+3" in verdict.sentence
    json.dumps(verdict.as_dict(), allow_nan=False)
    worse = np.where(at(-1, 1), 1.5, BEST)
    assert judge([probed(100, mse=worse), probed(200, mse=worse)]).state is State.BROKEN
    # The first answers of all may be worse than none.
    assert judge([probed(0, mse=np.ones(LEVELS)), probed(200, mse=worse)]).state is State.LEARNING


def test_a_finetune_begins_with_a_trained_network_whose_error_may_rise():
    base = probed(0)
    risen = judge([base, probed(500, 0.1)])
    assert risen.sentence == "The held-out bound rose from 297 to 327 nats since step 0."
    assert risen.action.startswith("Probe again")
    assert judge([base, probed(500, 0.3)]).state is State.AT_FAULT  # now worse than a linear denoiser
    assert "rose from 297 to 386" in judge([base, probed(500, 0.3)]).sentence
    lasting = judge([base, *(probed(step, 0.1) for step in (500, 1000, 1500))])
    assert lasting.state is State.OVERFITTING
    assert "since step 0" in lasting.sentence
    assert "the model that training began with" in lasting.action
    # An untrained network's error may rise at first, also where an answer of 0 is as good as a linear denoiser's.
    untrained = probed(0, mse=np.where(at(-6, 0), LINEAR, 1.2))
    assert states(judge([untrained, probed(500, 0.6 * at(-3, -0.5))]))["−3…0"] is State.LEARNING


def test_what_falls_in_one_band_and_rises_in_all_has_risen():
    verdict = judge([probed(100, 0.2 * at(-3, -0.5)), probed(200, 0.2 * at(0.5, 2.5))])
    assert verdict.state is State.LEARNING
    assert verdict.change > 0
    assert verdict.sentence.startswith("The held-out bound rose from ")


def test_where_nothing_can_be_said_it_is_said():
    assert judge([]).state is State.CANNOT_SAY
    untrained = judge([probed(0, mse=np.full(LEVELS, 1.2))])
    assert (untrained.state, untrained.state.code) == (State.CANNOT_SAY, -1)
    assert untrained.recoverable > 0  # a monitor of it is a number from the start
    bad = np.full(LEVELS, 1.2)
    young, broken = (judge([probed(step, mse=bad) for step in steps]) for steps in ((0, 4), (0, 200, 400)))
    assert (young.state, broken.state) == (State.CANNOT_SAY, State.BROKEN)
    assert "After 4 steps the network is hardly trained" in young.sentence
    few = probed(100)
    wide = few.curves["calibration_residual"]
    few.curves["calibration_residual"] = replace(wide, lower=wide.value - 0.5, upper=wide.value + 0.5)
    assert "too few" in judge([few]).sentence


@pytest.mark.parametrize(("record", "code"), [(probed(100), 0), (probed(100, **unfinished(0.2)), 1), (None, 2)])
def test_the_command_exits_with_what_is_to_be_done(record, code, tmp_path, capsys):
    stored(tmp_path, *filter(None, [record]))
    assert main(["verdict", str(tmp_path)]) == code
    shown = capsys.readouterr()
    if record is None:
        assert "There are no probe records" in shown.err
        return
    assert shown.out.count("log-SNR") >= 5
    assert main(["verdict", str(tmp_path), "--json"]) == code
    plain = json.loads(capsys.readouterr().out)
    assert plain["state"] == judge([record]).state.value
    assert next(band["name"] for band in plain["bands"]) == "−5.3…−3"
    assert plain["bound"] == pytest.approx(judge([record]).bound)


def test_six_probes_tell_what_twice_the_steps_would_bring(tmp_path, capsys):
    def probed_at(step: int) -> ProbeRecord:
        return probed(step, **unfinished(2 * step**-0.5))

    course = [probed_at(step) for step in range(100, 700, 100)]
    verdict = judge(course)
    fall = judge([course[-1], probed_at(1200)]).change
    assert verdict.forecast.until == 1200
    assert verdict.forecast.lower < -fall < verdict.forecast.upper
    assert 0 < verdict.forecast.nats < 2 * -fall
    assert "Twice the steps would bring" in verdict.sentence
    assert "which the records do not tell" in verdict.sentence
    assert sum(band.forecast.nats for band in verdict.bands) == pytest.approx(verdict.forecast.nats, rel=0.3)
    main(["verdict", str(stored(tmp_path, *course)), "--json"])
    assert json.loads(capsys.readouterr().out)["forecast"]["nats"] == pytest.approx(verdict.forecast.nats)
    # Below it stands what else the records advise: levels to sample at, and a rate that falls where it did not.
    untrained = probed(0, mse=3 * LINEAR)
    for record in (untrained, *course):
        record.provenance["learning_rate"] = 1e-3
    assert judge(course).sentence.endswith("at an unchanged learning rate.")
    told = told_in_full(tmp_path, [untrained, *course], verdict).splitlines()
    assert told[-2].startswith("  With 10 passes, sample at log-SNR −5.3, ")
    assert told[-1].startswith("  The learning rate has been 0.001 throughout. ")
    assert told_in_full(tmp_path, [untrained], judge([untrained])) == judge([untrained]).in_full
    # Of fewer probes, and of a learning rate that decays, nothing is told.
    assert judge(course[1:]).forecast is None
    for step, record in enumerate(course):
        record.provenance["learning_rate"] = 1e-3 / (1 + step)
    assert judge(course).forecast is None


def test_changes_are_told_without_exponents():
    assert [signed(nats) for nats in (-1234.6, 12.3, -2.34, 0.056, 1e-5)] == ["−1,235", "+12", "−2.3", "+0.06", "+0.00"]
