"""Which checkpoint a run goes on from."""

import torch

from ldmprobe.training.checkpoint.newest import newest_intact, set_aside_later


def test_checkpoints_of_a_branch_that_was_left_are_not_the_last(tmp_path):
    for step in (3, 6, 9):
        progress = {"epoch_loop.batch_progress": {"total": {"processed": step}}}
        torch.save({"global_step": step, "loops": {"fit_loop": progress}}, tmp_path / f"step={step}.ckpt")
    assert newest_intact([tmp_path])[0].path.name == "step=9.ckpt"
    assert [path.name for path in set_aside_later([tmp_path], after=3)] == [
        "step=6.ckpt.superseded",
        "step=9.ckpt.superseded",
    ]
    assert newest_intact([tmp_path])[0].path.name == "step=3.ckpt"
