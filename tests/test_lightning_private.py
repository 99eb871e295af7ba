"""What Lightning keeps private is as this version of ldmprobe takes it to be."""

import re
from datetime import timedelta
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from ldmprobe import lightning_private as private

ROOT = Path(__file__).resolve().parent.parent


class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(L.Callback):
    """What the private ground says at the end of each batch, where ModelCheckpoint saves."""

    def __init__(self):
        self.seen, self.checkpoints, self.min_epochs, self.validated = [], [], [], 0

    def on_fit_start(self, trainer, pl_module):
        self.min_epochs.append(trainer.fit_loop.min_epochs)
        private.allow_early_stop(trainer)
        self.min_epochs.append(trainer.fit_loop.min_epochs)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        checkpoint = trainer._checkpoint_connector.dump_checkpoint()
        self.checkpoints.append(checkpoint)
        state = private.LoopState(checkpoint)
        self.seen.append(
            {
                "number": private.batches_begun(trainer),
                "processed": private.batches_processed(trainer),
                "in checkpoint": private.processed_in(checkpoint),
                "steps": state.steps,
                "in batch end": state.in_batch_end,
                "between": private.ended_between_batches(trainer),
                "accumulating": private.is_accumulating(trainer),
                "validation due": state.validation_due(trainer),
                "row": private.pending_row(trainer),
                "logged": private.logger_step(trainer, 7),
            }
        )

    def on_validation_start(self, trainer, pl_module):
        self.validated += not trainer.sanity_checking


def run(tmp_path, **settings):
    watch = Watch()
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        callbacks=[watch],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"log_every_n_steps": 1, "max_steps": 3, "accumulate_grad_batches": 2, "val_check_interval": 4} | settings,
    )
    return trainer, watch, torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=1)


def test_versions_are_those_that_this_was_written_for():
    for name in ("constraints.txt", "constraints-lowest.txt"):
        assert re.search(r"^lightning==2\.6\.", (ROOT / name).read_text(), re.MULTILINE)


def test_progress_is_read_where_checkpoints_are_saved(tmp_path):
    trainer, watch, data = run(tmp_path, min_steps=1)
    trainer.fit(Linear(), data, data)
    assert watch.min_epochs == [1, 0]
    column = {name: [row[name] for row in watch.seen] for name in watch.seen[0]}
    assert column["number"] == [0, 1, 2, 3, 4, 5]
    assert column["processed"] == column["in checkpoint"] == [1, 2, 3, 4, 5, 6]
    assert column["accumulating"] == [True, False] * 3
    assert column["logged"] == [7] * 6  # by hand: tests/callbacks/test_probe_callbacks.py
    assert column["validation due"] == [False] * 3 + [True] + [False] * 2
    assert watch.validated == 1
    assert all(column["in batch end"])
    assert not any(column["between"])
    assert all(set(row) == {"epoch", "loss"} for row in column["row"])
    assert private.loop_counters(trainer)["epoch_loop.batch_progress"]["total"]["completed"] == 6


def test_a_batch_is_counted_and_reopened(tmp_path):
    trainer, watch, data = run(tmp_path, max_steps=1)
    trainer.fit(Linear(), data, data)
    state = private.LoopState(watch.checkpoints[-1])
    steps = state.steps
    state.count_batch()
    assert not state.in_batch_end
    state.reopen_batch(stepped=True)
    assert state.in_batch_end
    assert state.steps == steps - 1


@pytest.mark.parametrize("begun", [True, False])
def test_a_validation_that_was_due_at_the_checkpoint_is_run_on_resuming(tmp_path, begun):
    trainer, watch, data = run(tmp_path)
    trainer.fit(Linear(), data, data)
    checkpoint = watch.checkpoints[3]
    state = private.LoopState(checkpoint)
    state.count_batch()
    if begun:
        state.begin_validation()
    torch.save(checkpoint, tmp_path / "four.ckpt")
    trainer, watch, data = run(tmp_path, max_steps=4)
    trainer.fit(Linear(), data, data, ckpt_path=str(tmp_path / "four.ckpt"))
    assert watch.validated == 1 + begun  # the other is due after batch 8


def test_settings_are_read(tmp_path):
    trainer, _, _ = run(tmp_path, overfit_batches=2, reload_dataloaders_every_n_epochs=3, val_check_interval=1.0)
    assert private.log_interval(trainer) == 1
    assert private.overfit_batches(trainer) == 2
    assert private.reloads_data(trainer)
    assert not private.is_dry_run(trainer)
    assert not private.validates_by_time(trainer)
    assert any(isinstance(callback, Watch) for callback in private.callbacks_of(trainer))
    assert private.is_dry_run(run(tmp_path, fast_dev_run=True)[0])
    assert private.validates_by_time(run(tmp_path, val_check_interval=timedelta(hours=1))[0])


def test_callbacks_and_loggers_are_read(tmp_path):
    assert private.counts_epochs(Timer("00:01:00:00", interval="epoch"))
    assert not private.counts_epochs(Timer("00:01:00:00"))
    trainer, _, _ = run(tmp_path, val_check_interval=1.0)
    assert private.checks_at_epoch_end(EarlyStopping("loss"), trainer)
    assert not private.checks_at_epoch_end(EarlyStopping("loss", check_on_train_epoch_end=False), trainer)
    assert private.saves_every_n_steps(ModelCheckpoint(every_n_train_steps=7)) == 7
    assert private.saves_every_n_steps(ModelCheckpoint()) == 0
    assert private.saves_by_time(ModelCheckpoint(train_time_interval=timedelta(hours=1)))
    assert not private.saves_by_time(ModelCheckpoint())
    assert private.saves_at_epoch_end(ModelCheckpoint(), trainer)
    assert not private.saves_at_epoch_end(ModelCheckpoint(save_on_train_epoch_end=False), trainer)
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    private.set_wandb_id(logger, "abcd")
    assert logger.version == logger._wandb_init["id"] == "abcd"
