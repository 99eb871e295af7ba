"""Lightning's own callbacks go by what probes find, from before the first step on, also after a resume."""

from html import escape
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ldmprobe import RecordStore, write_report
from ldmprobe.callbacks import DenoisingProbe, ExactResume, StopRule, TrainingLoss
from ldmprobe.tracking.run_verdict import verdict_on
from ldmprobe.tracking.scalars import verdict_metrics
from tests.helpers import refused
from tests.training.test_latent_diffusion import digits, module, trainer

BOUND = "probe_denoising/bound_nats"


def probes(every_n_steps: int = 2) -> list[L.Callback]:
    return [DenoisingProbe(every_n_steps, num_images=16, num_draws=32, num_reference=256), TrainingLoss(every_n_steps)]


class Spy(L.Callback):
    """Writes down what Lightning's callbacks would see at each validation."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, float]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = trainer.callback_metrics
        self.seen[trainer.global_step] = {name: float(found[name]) for name in found if name.startswith("probe_")}


def test_the_best_checkpoint_is_that_of_the_best_probe(tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor=BOUND, every_n_train_steps=2, save_top_k=1)
    trainer(tmp_path, max_steps=6, callbacks=[*probes(), best], enable_checkpointing=True).fit(module(), digits())
    found = {record.step: record.scalars["denoising_bound_nats"] for record in RecordStore(tmp_path).read("denoising")}
    step = min((step for step in found if step > 0), key=lambda step: found[step])
    assert float(best.best_model_score) == pytest.approx(found[step], rel=1e-6)
    assert f"step={step}" in Path(best.best_model_path).name


def test_a_run_ends_early_by_what_a_probe_finds(tmp_path):
    spy, stopping = Spy(), EarlyStopping(BOUND, patience=0, stopping_threshold=1e9)
    fit = trainer(tmp_path, callbacks=[*probes(4), spy, stopping], val_check_interval=3)
    fit.fit(module(), digits())
    assert fit.global_step == 3  # at the first validation, by the probe of step 0
    before = RecordStore(tmp_path).read("denoising")[0].scalars["denoising_bound_nats"]
    assert spy.seen[3][BOUND] == pytest.approx(before, rel=1e-6)


def test_the_stop_rule_ends_a_run_that_gets_no_better_and_links_to_its_best(tmp_path):
    """Nothing is better by all of the bound, so that the first trained probe stays the best."""
    saving = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_top_k=-1)
    callbacks = [*probes(), StopRule(patience=1, least_gain=1), saving, EarlyStopping("verdict/code", patience=99)]
    fit = trainer(tmp_path, max_steps=9, callbacks=callbacks, enable_checkpointing=True)
    fit.fit(module(), digits())
    assert fit.global_step == 4
    assert (tmp_path / "checkpoints" / "best.ckpt").resolve().name.endswith("step=2.ckpt")
    (stop,) = RecordStore(tmp_path).read("stop")
    assert (stop.step, stop.provenance["best_step"]) == (4, 2)
    assert str(stop.provenance["summary"]) in (html := write_report(tmp_path).read_text())
    verdict = verdict_on(tmp_path)
    assert f"<b>{escape(verdict.sentence)}</b>" in html
    assert {name: float(fit.callback_metrics[name]) for name in verdict_metrics(verdict)} == pytest.approx(
        verdict_metrics(verdict), rel=1e-6, nan_ok=True
    )


def test_a_resumed_run_is_stopped_where_an_unbroken_one_is(tmp_path):
    """At step 6: the probe that step 4 has only where the run ends there is not waited for."""

    def fit(max_steps: int, **more: Any) -> L.Trainer:
        made = trainer(tmp_path, max_steps=max_steps, callbacks=[*probes(3), StopRule(patience=1, least_gain=1)])
        made.fit(module(), digits(), **more)
        return made

    fit(4).save_checkpoint(tmp_path / "part.ckpt")
    assert fit(8, ckpt_path=str(tmp_path / "part.ckpt")).global_step == 6


def test_the_stop_rule_has_to_have_something_to_go_by(tmp_path):
    with refused("StopRule goes by the held-out bound; add a DenoisingProbe"):
        trainer(tmp_path, callbacks=[StopRule()]).fit(module(), digits())


def test_a_resumed_run_goes_by_the_same_metrics_as_an_unbroken_one(tmp_path):
    """Stopped and saved at step 5, where a probe is taken that an unbroken run does not have; validated at 6, before
    the next probe."""

    def fit(folder: Path, max_steps: int, **more: Any) -> dict[int, dict[str, float]]:
        spy, saving = Spy(), ModelCheckpoint(folder, "five", every_n_train_steps=5)
        callbacks = [*probes(4), spy, ExactResume(), saving]
        settings = {"val_check_interval": 6, "enable_checkpointing": True}
        trainer(folder, max_steps=max_steps, callbacks=callbacks, **settings).fit(module(), digits(), **more)
        return spy.seen

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = fit(whole, 7)
    assert fit(parts, 5) == {}
    assert fit(parts, 7, ckpt_path=str(parts / "five.ckpt")) == expected
    assert set(expected) == {6}
    assert BOUND in expected[6]


@pytest.mark.parametrize("monitor", ["probe_denoising/bound", "probe_training/mse/logsnr+00.8"])
def test_what_no_probe_finds_before_the_first_step_is_refused_with_what_there_is(tmp_path, monitor):
    stopping = EarlyStopping(monitor)
    with refused(rf"EarlyStopping monitors '{monitor.replace('+', '.')}'.*probe_denoising/"):
        trainer(tmp_path, callbacks=[*probes(), stopping]).fit(module(), digits())
    assert not [record for record in RecordStore(tmp_path).read("denoising") if record.step > 0]
