"""Which checkpoint a run goes on from."""

import pytest
import torch

from ldmprobe.training.checkpoint.newest import newest_intact, set_aside_later


def _save(folder, step):
    folder.mkdir(parents=True, exist_ok=True)
    progress = {"epoch_loop.batch_progress": {"total": {"processed": step}}}
    torch.save({"global_step": step, "loops": {"fit_loop": progress}}, folder / f"step={step}.ckpt")


def test_checkpoints_of_a_branch_that_was_left_are_not_the_last(tmp_path):
    for step in (3, 6, 9):
        _save(tmp_path, step)
    assert newest_intact([tmp_path])[0].path.name == "step=9.ckpt"
    assert [path.name for path in set_aside_later([tmp_path], after=3)] == [
        "step=6.ckpt.superseded",
        "step=9.ckpt.superseded",
    ]
    assert newest_intact([tmp_path])[0].path.name == "step=3.ckpt"


@pytest.mark.parametrize("checkpoints", ["checkpoints", "elsewhere/deep"])
def test_checkpoints_of_a_run_in_a_sub_folder_are_not_its_own(tmp_path, checkpoints):
    _save(tmp_path / checkpoints, 3)
    (tmp_path / "config.yaml").touch()
    again = tmp_path / "again"
    _save(again / "checkpoints", 9)
    (again / "checkpoints" / "torn.ckpt").touch()
    (again / "config.yaml").touch()
    saved, torn = newest_intact([tmp_path])
    assert (saved.global_step, torn) == (3, {})
    assert set_aside_later([tmp_path], after=3) == []
    assert newest_intact([again])[0].global_step == 9
    (again / "config.yaml").unlink()
    assert newest_intact([tmp_path])[0].global_step == 9  # a folder, not a run
