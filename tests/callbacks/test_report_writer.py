"""ReportWriter: when pages are written."""

import lightning as L
import pytest

from ldmprobe.callbacks import ReportWriter, TrainingLoss, report_writer
from tests.training.test_latent_diffusion import digits, module, trainer


class Look(L.Callback):
    """Which steps the page told of after each batch."""

    def __init__(self, page):
        self.page, self.seen = page, []

    def on_train_batch_end(self, *_):
        self.seen.append([step for step in (2, 4) if self.page.exists() and f"step {step}," in self.page.read_text()])


@pytest.mark.parametrize(("share", "seen"), [(1e9, [[], [], [2], [2]]), (0.02, [[]] * 4)])
def test_a_page_is_written_once_there_are_new_records_if_it_takes_no_more_than_its_share(
    tmp_path, monkeypatch, share, seen
):
    monkeypatch.setattr(report_writer, "_SHARE", share)
    look = Look(tmp_path / "report.html")
    callbacks = [ReportWriter(), TrainingLoss(2), look]
    trainer(tmp_path, max_steps=4, callbacks=callbacks).fit(module(), digits())
    assert look.seen == seen
    assert "step 4," in look.page.read_text()
