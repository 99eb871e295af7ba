"""What a run that goes on from an earlier step leaves behind: records are tested in test_probe_callbacks.py."""

import csv

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from ldmprobe import ResumableCSVLogger
from ldmprobe.callbacks import ExactResume, TrainingClock
from ldmprobe.io.run_directory import lock, unlock


class Line(L.LightningModule):
    def __init__(self, slope):
        super().__init__()
        self.line, self.slope = torch.nn.Linear(1, 1), slope

    def training_step(self, batch, batch_idx):
        self.log("slope", self.slope)
        return self.line(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, callback, max_steps, every, slope, ckpt_path=None):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    logger = ResumableCSVLogger(str(folder), flush_logs_every_n_steps=1)
    settings = {"accelerator": "cpu", "default_root_dir": folder, "log_every_n_steps": every, "logger": logger}
    trainer = L.Trainer(max_steps=max_steps, callbacks=[callback], **settings, **quiet)
    trainer.fit(Line(slope), DataLoader(torch.ones(8, 1)), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def slopes(folder, name="metrics.csv"):
    """The logged slope by step."""
    with (folder / "lightning_logs" / "version_0" / name).open() as file:
        return {int(row["step"]): float(row["slope"]) for row in csv.DictReader(file) if row.get("slope")}


@pytest.fixture
def folder(tmp_path):
    lock(tmp_path, resuming=True)
    yield tmp_path
    unlock(tmp_path)


@pytest.mark.parametrize("callback", [ExactResume, TrainingClock])
def test_rows_after_the_checkpoint_are_set_aside_where_the_log_interval_is_another(folder, callback):
    fit(folder, callback(), 4, 2, slope=1.0).save_checkpoint(folder / "four.ckpt")
    fit(folder, callback(), 8, 2, 2.0, folder / "four.ckpt")
    assert slopes(folder) == {1: 1.0, 3: 1.0, 5: 2.0, 7: 2.0}
    fit(folder, callback(), 6, 5, 3.0, folder / "four.ckpt")
    assert slopes(folder) == {1: 1.0, 3: 1.0, 4: 3.0}
    assert slopes(folder, "metrics.superseded.csv") == {5: 2.0, 7: 2.0}


@pytest.mark.parametrize("callback", [ExactResume, TrainingClock])
def test_all_rows_are_set_aside_where_a_run_starts_anew(folder, callback):
    fit(folder, callback(), 3, 1, slope=1.0)
    fit(folder, callback(), 2, 2, slope=2.0)
    assert slopes(folder) == {1: 2.0}
    assert slopes(folder, "metrics.superseded.csv") == {0: 1.0, 1: 1.0, 2: 1.0}
