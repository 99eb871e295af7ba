"""What a Trainer's epochs mean to a stream without end: honored, or refused by name."""

import logging

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)

from ldmprobe import ImageData
from ldmprobe.callbacks import ExactResume
from tests.helpers import refused
from tests.training.test_latent_diffusion import assert_same_state, digits, module

ROWS, BATCH = 40, 2


class Reads(L.LightningModule):
    """Writes down which rows it is trained on, and after which batches it is validated."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows: list[list[float]] = []
        self.validated: list[int] = []

    def training_step(self, batch, batch_idx):
        self.rows.append(batch["image"][:, 0, 0, 0].tolist())
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.validated.append(self.trainer.global_step)
        self.log("val/loss", 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(**settings) -> ImageData:
    """Its training rows, of which no two have the same first pixel."""
    kwargs = {"num_images": ROWS + 4, "channels": 1, "size": 2}
    held_out = {"held_out_fraction": 4 / (ROWS + 4), "held_out_rows": 4}
    return ImageData("builtin:gaussian", kwargs, batch_size=BATCH, **held_out, **settings)


def fit(folder, rows, ckpt_path=None, callbacks=(), **settings) -> Reads:
    reader = Reads()
    defaults = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {"max_steps": 20, "enable_checkpointing": False, **defaults, **settings}
    trainer = L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **settings)
    trainer.fit(reader, rows, ckpt_path=ckpt_path)
    return reader


# --- honored ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"num_workers": 2}, {"streaming": True, "shuffle_buffer": 8}], ids=str)
def test_limited_epochs_go_on_through_the_data_and_so_does_a_run_that_is_resumed_within_one(tmp_path, settings):
    endless = fit(tmp_path / "endless", data(**settings), val_check_interval=5).rows
    kept = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1)
    limits = {"limit_train_batches": 5, "enable_checkpointing": True}
    limited = fit(tmp_path / "limited", data(**settings), callbacks=[kept], **limits)
    assert limited.rows == endless
    assert len({row for batch in limited.rows for row in batch}) == ROWS
    assert limited.validated == [5, 10, 15, 20]
    for step in (3, 5, 11):
        (path,) = (tmp_path / "kept").glob(f"*-step={step}.ckpt")
        resumed = fit(tmp_path / f"from {step}", data(**settings), str(path), limit_train_batches=5)
        assert resumed.rows == endless[step:]


def test_epochs_end_a_run_where_they_are_limited(tmp_path):
    assert len(fit(tmp_path, data(), max_steps=-1, max_epochs=3, limit_train_batches=5).rows) == 15


@pytest.mark.parametrize("settings", [{}, {"streaming": True, "shuffle_buffer": 8}], ids=str)
def test_overfitting_sees_the_same_batches_in_each_epoch(tmp_path, settings):
    rows = fit(tmp_path, data(**settings), overfit_batches=3, max_steps=9, limit_val_batches=0).rows
    assert len({row for batch in rows for row in batch}) == 3 * BATCH
    assert rows[:3] == rows[3:6] == rows[6:]


def test_a_run_of_limited_epochs_resumes_exactly_with_its_validations(tmp_path):
    def run(folder, ckpt_path=None):
        model = module()
        model.validated = []
        kept = ModelCheckpoint(tmp_path / folder, every_n_train_steps=1, save_top_k=-1)
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            default_root_dir=tmp_path / folder, max_steps=7, limit_train_batches=3, limit_val_batches=1, accumulate_grad_batches=2,
            callbacks=[kept, ExactResume(), Validated()],
        )  # fmt: skip
        trainer.fit(model, digits(), ckpt_path=ckpt_path)
        return model

    class Validated(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            pl_module.validated.append(trainer.fit_loop.epoch_loop.batch_progress.total.ready)

    whole = run("whole")
    assert whole.validated == [3, 6, 9]  # of batches; an epoch of three is two steps
    for step, validated in ((1, [3, 6, 9]), (2, [3, 6, 9]), (3, [6, 9]), (4, [6, 9])):
        (path,) = (tmp_path / "whole").glob(f"*-step={step}.ckpt")
        resumed = run(f"from {step}", path)
        assert_same_state(whole.state_dict(), resumed.state_dict())
        assert resumed.validated == validated


def test_min_steps_does_not_keep_a_run_from_stopping_early(tmp_path):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step >= 3

    assert len(fit(tmp_path, data(), callbacks=[Stop()], min_steps=6, val_check_interval=5).rows) == 6


# --- refused ----------------------------------------------------------------------------------------------------------

VALIDATES = {"val_check_interval": 5}
MONITOR = {"monitor": "val/loss"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_epochs": 2}, "max_epochs: 2"),
        ({"max_epochs": 2, "max_steps": -1}, "max_epochs: 2"),
        ({"min_epochs": 2}, "min_epochs: 2"),
        ({"limit_train_batches": 0.5}, "limit_train_batches: 0.5"),
        ({"overfit_batches": 0.1}, "overfit_batches: 0.1"),
        ({"val_check_interval": 0.5}, "val_check_interval: 0.5"),
        ({"val_check_interval": 6, "limit_train_batches": 5}, "val_check_interval: 6"),
        ({"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders_every_n_epochs"),
        ({"callbacks": [ModelCheckpoint("kept", **MONITOR)]}, "ModelCheckpoint .*val_check_interval"),
        ({"callbacks": [ModelCheckpoint("kept", every_n_epochs=2)]} | VALIDATES, "every_n_epochs 2.*every_n_train_steps"),
        ({"callbacks": [EarlyStopping(**MONITOR)]}, "EarlyStopping .*val_check_interval"),
        ({"callbacks": [EarlyStopping(**MONITOR, check_on_train_epoch_end=True)]} | VALIDATES, "check_on_train_epoch_end"),
        ({"callbacks": [GradientAccumulationScheduler({4: 2})]}, "GradientAccumulationScheduler from epoch 4"),
        ({"callbacks": [LearningRateMonitor("epoch")], "logger": True}, "LearningRateMonitor"),
        ({"callbacks": [StochasticWeightAveraging(1e-2)]}, "StochasticWeightAveraging.*ema_decay"),
        ({"callbacks": [Timer({"days": 1}, interval="epoch")]}, "Timer"),
    ],
)  # fmt: skip
def test_what_never_comes_is_refused_by_name(tmp_path, monkeypatch, settings, named):
    monkeypatch.chdir(tmp_path)
    checkpoints = {"enable_checkpointing": True} if "ModelCheckpoint" in named or "every_n_epochs 2" in named else {}
    with refused(named):
        fit(tmp_path, data(), **checkpoints, **settings)
    assert not (tmp_path / "kept").exists()


def test_a_run_that_would_not_validate_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert fit(tmp_path, data(), max_steps=1).validated == []
        told = [record.getMessage() for record in caplog.records if "validated" in record.getMessage()]
        assert len(told) == 1
        assert "trainer.val_check_interval" in told[0]
        stops = EarlyStopping(**MONITOR, patience=0)
        assert fit(tmp_path, data(), callbacks=[stops], val_check_interval=5).validated == [5, 10]
        assert fit(tmp_path, data(), max_steps=1, limit_val_batches=0).validated == []
        assert len([record for record in caplog.records if "validated" in record.getMessage()]) == 1
