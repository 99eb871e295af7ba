"""The audit catches what a probe changes, names it and its culprit, and knows what it cannot tell."""

import copy

import pytest

from ldmprobe.audit.audit import audit
from ldmprobe.audit.comparison import compare, unsteady_metrics, verdict
from ldmprobe.audit.configuration import audited, read_configuration
from ldmprobe.audit.ledger import differences
from ldmprobe.audit.run import observe
from ldmprobe.cli import main
from ldmprobe.io.digest import digest
from tests.audit.audited_run import ALL_PROBES, own, write_config
from tests.helpers import refused, refuses
from tests.run_config import component

PLANTED = {
    "draws_from_torch": "the random state of torch",
    "draws_from_numpy": "the random state of NumPy",
    "draws_from_python": "the random state of Python",
    "leaves_eval_mode_on": "the training flag of network.layers and 5 more",
    # and variance, count, torch's state by dropout
    "steps_batch_norm": "buffer network.layers.1.running_mean and 3 more",
    "touches_a_weight": "parameter network.layers.0.weight",
    "touches_the_average": "the moving average's ema.network.layers.0.bias",
    "leaves_a_gradient": "the gradient of network.layers.4.bias",
    "freezes_a_weight": "requires_grad of network.layers.0.weight",
    "changes_the_optimizer": "the optimizer's exp_avg of network.layers.0.weight",
    "changes_the_learning_rate": "the optimizer's lr of parameter group 0",
    "steps_the_schedule": "the learning-rate schedule's last_epoch",
    "counts_a_batch": "the loop counter epoch_loop.batch_progress.total.ready and 1 more",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps of a small run with the given probes, or without."""
    folder = tmp_path_factory.mktemp("audited")
    path = write_config(
        folder / "run.yaml", model={"network": own("NormedDenoiser")}, callbacks=[own("Disturbing", how="looks")]
    )
    config = read_configuration(["--config", str(path)])

    def observed(*callbacks, probed=True):
        settings = copy.deepcopy(config)
        settings["trainer"]["callbacks"] = list(callbacks)
        return observe(settings, folder / f"{len(list(folder.iterdir()))}", 2, probed)

    return observed


@pytest.fixture(scope="module")
def plain(run):
    return run(probed=False)


@pytest.mark.parametrize("how", PLANTED)
def test_a_planted_disturbance_is_caught_and_named(run, plain, how):
    probed = run(own("Disturbing", how=how))
    first = probed.disturbances[0]
    what = PLANTED[how]
    if how == "steps_batch_norm":
        assert first.changed[0] == "the random state of torch"  # by dropout
        assert [name.rpartition(".")[2] for name in first.changed[1:]] == [
            "running_mean",
            "running_var",
            "num_batches_tracked",
        ]
    else:
        assert str(first) == f"Disturbing changed {what} (step 1, in on_train_batch_end)"
    compared = compare(plain, probed)
    assert compared.first == f"step 1, after batch 2: {first.changed[0]}"
    undisturbed, text = verdict(probed, compared, compare(plain, plain))
    assert not undisturbed
    assert f"Disturbed: {first}" in " ".join(text.split())


def test_a_metric_of_training_that_a_probe_logs_is_caught(run, plain):
    probed = run(own("Disturbing", how="logs_a_training_metric"))
    assert compare(plain, probed).first == "in the log: the logged metric train/loss at step 1"


def test_a_probe_that_only_looks_disturbs_nothing(run, plain):
    probed = run(own("Disturbing", how="looks"))
    compared = compare(plain, probed)
    undisturbed, text = verdict(probed, compared, None)
    assert undisturbed
    assert "0 bytes differ; the 3 runs of the probes left everything as they found it" in " ".join(text.split())
    assert all(row.differing == 0 for row in compared.rows.values())


def test_a_probe_that_fails_is_told_of(run, plain):
    probed = run(own("Disturbing", how="raises"))
    undisturbed, text = verdict(probed, compare(plain, probed), None)
    assert undisturbed
    assert text.startswith(
        "Disturbing failed, so that less was tried than should have been (RuntimeError: nothing to see)."
    )


def test_training_that_is_not_repeatable_is_told_from_a_disturbance(run):
    def restless():
        return own("Restless", in_earnest=True)

    plain, again = (run(restless(), probed=False) for _ in range(2))
    for how, expected in (("looks", True), ("draws_from_numpy", False)):
        probed = run(restless(), own("Disturbing", how=how))
        undisturbed, text = verdict(probed, compare(plain, probed), compare(plain, again))
        assert undisturbed == expected
        assert "two runs without any differ, first at step 0, after batch 1: the random state of Python" in " ".join(
            text.split()
        )


def test_logged_times_are_left_out(run):
    settings = own("Restless", in_earnest=False)
    plain, again = (run(settings, probed=False) for _ in range(2))
    assert compare(plain, again).first is not None
    assert unsteady_metrics(plain, again) == {"seconds"}
    assert compare(plain, again, leave_out={"seconds"}).first is None


def test_what_is_missing_differs():
    one = {"parameters": {"a": digest(1), "b": digest(2)}}
    assert list(differences(one, {"parameters": {"a": digest(1)}})) == [("parameters", "b")]
    assert list(differences({}, one)) == [("parameters", "a"), ("parameters", "b")]


def test_a_logger_of_ones_own_is_audited_as_the_one_that_it_extends(tmp_path):
    probes = [own("Disturbing", how="looks")]
    path = write_config(tmp_path / "run.yaml", callbacks=probes, logger=[own("OwnLogger", save_dir="elsewhere")])
    kept = audited(read_configuration(["--config", str(path)]), tmp_path, 2, probed=True)["trainer"]["logger"]
    assert [each["class_path"].rpartition(".")[2] for each in kept] == ["CSVLogger", "TensorBoardLogger"]
    assert {each["init_args"]["save_dir"] for each in kept} == {str(tmp_path)}


def test_a_configuration_without_probes_is_refused(tmp_path):
    path = write_config(tmp_path / "run.yaml", callbacks=[])
    with refused(r"names no probe, so there is nothing to audit; add some"):
        audit(["--config", str(path)], steps=20)


@pytest.mark.parametrize(
    ("options", "told"),
    [(("--steps", "1"), "--steps: got 1, expected at least 2"), (("--trainer.no_such_thing=1",), "no_such_thing")],
)
def test_arguments_that_cannot_be_are_refused(tmp_path, capsys, options, told):
    refuses(capsys, ["audit", "--config", str(write_config(tmp_path / "run.yaml")), *options], told)


@pytest.mark.usefixtures("forked_audit")
def test_the_command_says_undisturbed_and_writes_nothing(tmp_path, capsys):
    # All probes: tests/test_undisturbed.py.
    path = write_config(tmp_path / "run.yaml", callbacks=[*ALL_PROBES[:1], component("ReportWriter")])
    before = sorted(tmp_path.rglob("*"))
    assert main(["audit", "--config", str(path), "--steps", "2", "--trainer.gradient_clip_val=0.5"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "DDIMProbe 3×, ReportWriter 1×" in text
    assert "Undisturbed: with probes, training is bit-identical to training without, 0 bytes differ" in text
    assert [path for path in sorted(tmp_path.rglob("*")) if "hf_cache" not in path.parts] == before


@pytest.mark.usefixtures("forked_audit")
def test_the_command_names_the_culprit(tmp_path, capsys):
    path = write_config(tmp_path / "run.yaml", callbacks=[own("Disturbing", how="draws_from_numpy")])
    assert main(["audit", "--config", str(path), "--steps", "2"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "without probes, once more" in text
    assert "Disturbed: Disturbing changed the random state of NumPy (step 1, in on_train_batch_end)." in text
    assert "differs from training without, first at step 1, after batch 2: the random state of NumPy." in text


@pytest.mark.parametrize("start", ["forked_audit", pytest.param("tmp_path", marks=pytest.mark.reliability)])
def test_an_error_in_training_is_told_as_fit_tells_it(start, request, tmp_path, capsys):
    request.getfixturevalue(start)
    path = write_config(tmp_path / "run.yaml", data={"dataset": "no/such/folder"})
    refuses(capsys, ["audit", "--config", str(path), "--steps", "2"], "no/such/folder")
