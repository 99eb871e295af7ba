"""Lightning's own callbacks go by what probes find, from before the first step on, also after a resume."""

from datetime import timedelta
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from ldmprobe import RecordStore, write_report
from ldmprobe.callbacks import DenoisingProbe, ExactResume, ProbeCallback, StopRule, TrainingLoss
from ldmprobe.io.metric import Metric
from ldmprobe.io.record import ProbeRecord
from ldmprobe.probing.probe import Ranks
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
    fit = trainer(tmp_path, callbacks=[*probes(3), spy, stopping], val_check_interval=3)
    fit.fit(module(), digits())
    assert fit.global_step == 3  # at the first validation, by the probe of the same step
    _, found = RecordStore(tmp_path).read("denoising")
    assert spy.seen[3][BOUND] == pytest.approx(found.scalars["denoising_bound_nats"], rel=1e-6)


def test_the_stop_rule_ends_a_run_that_gets_no_better_and_links_to_its_best(tmp_path):
    """Nothing is better by all of the bound, so that the first trained probe stays the best."""
    saving = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_top_k=-1)
    callbacks = [*probes(), StopRule(patience=1, least_gain=1), saving, EarlyStopping("verdict/code", patience=99)]
    fit = trainer(tmp_path, max_steps=9, callbacks=callbacks, enable_checkpointing=True, val_check_interval=2)
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


# --- when they look ------------------------------------------------------------------------------------------------


class Constant(ProbeCallback[Any]):
    def subject(self, pl_module: L.LightningModule) -> Any:
        return SimpleNamespace(network=pl_module)

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ranks: Ranks) -> ProbeRecord:
        metrics = (Metric("constant_value", "", "", good="lower", shown="headline"),)
        return ProbeRecord("constant", trainer.global_step, {"constant_value": 1.0}, metrics=metrics)


VALUE = "probe_constant/value"


class Stopping(EarlyStopping):
    """Writes down after which steps it looks."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(VALUE, patience=99, **settings)
        self.looks: list[int] = []

    def _run_early_stopping_check(self, trainer: L.Trainer) -> None:
        self.looks += [trainer.global_step] * (not trainer.fast_dev_run)


class Saving(ModelCheckpoint):
    """Writes down after which steps it looks."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(monitor=VALUE, **settings)
        self.looks: list[int] = []

    def _save_topk_checkpoint(self, trainer: L.Trainer, monitor_candidates: Any) -> None:
        self.looks.append(trainer.global_step)


class Module(L.LightningModule):
    """Writes down after which steps its schedule looks, where it has one."""

    def __init__(self, schedule: dict[str, Any] | None = None, steps_by_hand: int = 0) -> None:
        super().__init__()
        self.layer, self.schedule, self.steps_by_hand = torch.nn.Linear(1, 1), schedule, steps_by_hand
        self.automatic_optimization = steps_by_hand == 0
        self.looks: list[int] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor | None:
        for _ in range(self.steps_by_hand):
            self.optimizers().step()
        return self.layer(batch).mean() if self.automatic_optimization else None

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.schedule is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": VALUE, **self.schedule}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.looks.append(self.trainer.global_step)


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        while True:
            yield torch.ones(1)


def looks(folder: Path, every_n_steps: int, who: Any, endless: bool = False, **settings: Any) -> list[int]:
    """The steps after which a monitor looks in a run of 16, in epochs of 8 batches or in one without end."""
    data = DataLoader(Endless() if endless else torch.ones(8, 1))
    pl_module, callbacks = (who, []) if isinstance(who, Module) else (Module(), [who])
    fit = trainer(folder, max_steps=16, **{"val_check_interval": None, "check_val_every_n_epoch": 1, **settings},
                  enable_checkpointing=True, callbacks=[Constant(every_n_steps), *callbacks])  # fmt: skip
    fit.fit(pl_module, data, DataLoader(torch.ones(1, 1)))
    return who.looks


ACROSS_EPOCHS = {"check_val_every_n_epoch": None}
TWICE = {"accumulate_grad_batches": 2}


@pytest.mark.parametrize(
    ("make", "settings", "advice"),
    [
        (Saving, {"kind": {"every_n_train_steps": 4}}, "`every_n_train_steps` to {0}"),
        (Saving, {"val_check_interval": 3, **ACROSS_EPOCHS}, "`every_n_train_steps` to {0}"),
        (Saving, {}, "`every_n_train_steps` to {0}"),
        (Saving, {"kind": {"every_n_epochs": 2}, **TWICE}, "`every_n_train_steps` to {0}"),
        (Stopping, {"val_check_interval": 3, **ACROSS_EPOCHS}, "`trainer.val_check_interval` to {0}.*StopRule"),
        (Stopping, {"val_check_interval": 4, "endless": True, **TWICE}, "`trainer.val_check_interval` to {1}"),
        (Stopping, {"val_check_interval": 4}, "StopRule"),
        (Stopping, {"val_check_interval": 0.75, **TWICE}, "StopRule"),
        (Stopping, {"check_val_every_n_epoch": 2, **TWICE}, "StopRule"),
        (Stopping, {"kind": {"check_on_train_epoch_end": True}, "val_check_interval": 3}, "StopRule"),
        (Stopping, {"limit_val_batches": 0, "kind": {"check_on_train_epoch_end": False}}, "StopRule"),
        (Module, {"kind": {"schedule": {"interval": "step", "frequency": 4}}, **TWICE}, "`frequency` to {1}"),
        (Module, {"kind": {"schedule": {"interval": "step", "frequency": 99}}}, "`frequency`"),
        (Module, {"kind": {"schedule": {"interval": "epoch"}}}, "`interval` to step and `frequency` to {0}"),
    ],
)
def test_what_looks_at_a_metric_between_two_probes_is_refused(tmp_path, make, settings, advice):
    """So is exactly what would see an old value; the same monitor beside a probe of every step says when it looks."""
    settings = dict(settings)
    kind = settings.pop("kind", {})
    seen = looks(tmp_path / "1", 1, make(**kind), **settings)
    for every in (2, 3, 4, 8, 24):
        old = [step for step in seen if step % every]
        again = (tmp_path / str(every), every, make(**kind))
        if old:
            told = advice.format(every, every * settings.get("accumulate_grad_batches", 1))
            with refused(f"{old[0]}, too, and would take the value of step {old[0] // every * every} .*{told}"):
                looks(*again, **settings)
        else:
            assert looks(*again, **settings) == seen


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: Saving(train_time_interval=timedelta(hours=1)), {}),
        (lambda: Stopping(check_on_train_epoch_end=False), {"val_check_interval": timedelta(hours=1)}),
        (Stopping, {"endless": True, "val_check_interval": 1.0}),
    ],
)
def test_looks_at_times_that_are_not_known_are_warned_of(tmp_path, caplog, make, settings):
    looks(tmp_path, 5, make(), **settings)
    assert f"'{VALUE}' is new every 5 optimizer steps" in caplog.text


def test_looks_beside_steps_by_hand_are_warned_of(tmp_path, caplog):
    """A probe of every 5 steps, two a batch, runs after steps 6, 10 and 12; how many there are is not known before."""
    stopping = Stopping()
    fit = trainer(tmp_path, max_steps=12, val_check_interval=3, callbacks=[Constant(5), stopping])
    fit.fit(Module(steps_by_hand=2), DataLoader(torch.ones(8, 1)), DataLoader(torch.ones(1, 1)))
    assert stopping.looks == [6, 12]
    assert f"'{VALUE}' is new every 5 optimizer steps" in caplog.text


def test_a_dry_run_looks_at_nothing(tmp_path):
    assert looks(tmp_path, 500, Stopping(), fast_dev_run=True) == []
